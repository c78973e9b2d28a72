"""Pictures of what a model does with a photo; needs matplotlib, and Grad-CAM its own package."""

from .grad_cam import Cam, explain
from .heat import Heat, conduction_layers, record
from .receptive_field import measure
from .report import write_report

__all__ = ['Cam', 'Heat', 'conduction_layers', 'explain', 'measure', 'record', 'write_report']
