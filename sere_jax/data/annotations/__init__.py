"""What evaluations learn from: label maps and objects, and transforms that move an image and its label map together."""
