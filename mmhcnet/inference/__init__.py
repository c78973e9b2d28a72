"""A trained model: building it, export, complexity, pictures."""

from .complexity import THOP_OPS, Complexity, count_complexity
from .export import check_onnx, export_onnx, exportable
from .model import build_model
from .pictures import model_input, read_picture
from .quantize import ExportedClassifier

__all__ = [
    'THOP_OPS',
    'Complexity',
    'ExportedClassifier',
    'build_model',
    'check_onnx',
    'count_complexity',
    'export_onnx',
    'exportable',
    'model_input',
    'read_picture',
]
