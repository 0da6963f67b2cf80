"""From a checkpoint to files that other programs run: ONNX with its parity gate, 8-bit files, published folders."""
