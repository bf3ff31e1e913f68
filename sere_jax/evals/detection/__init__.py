"""Detections as COCO judges them: result files, average precision, curves, drawn predictions."""
