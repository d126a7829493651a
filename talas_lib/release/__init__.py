"""A student made ready to be given away: ONNX, shorter vectors, the model card, the folder."""
