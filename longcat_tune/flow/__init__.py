"""Flow-matching maths: tensors in, tensors out; shared by training and sampling."""
