"""What torch 2.1, of the OpenMMLab stack, cannot do on a CPU."""

import pytest
import torch

_OLD = not hasattr(torch.amp, 'GradScaler')
# It has neither products nor autocast in float16.
HALF = [] if _OLD else [torch.float16]
compiles = pytest.mark.skipif(
    _OLD, reason="torch 2.1's dynamo takes neither dtypes nor sizes for constants"
)
