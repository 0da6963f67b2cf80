"""Export: ONNX files behind a parity check, 8-bit ONNX files, published model folders."""
