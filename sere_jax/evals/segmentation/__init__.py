"""Segmentation: which number of a label map is which class, scores, predictions in the size of the map, and the files of a report."""
