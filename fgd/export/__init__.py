"""A result folder as one ONNX file: boxes, scores and labels come out of the graph. `python -m fgd.export --help`.

Loads nothing by itself: torch, onnx and onnxruntime are the extra `export`, and usage.py, which is copied beside each
exported file, needs none of this project.
"""
