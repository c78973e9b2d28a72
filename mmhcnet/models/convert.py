import re
from typing import Dict

from torch import Tensor

# Keys of the authors' HcNet -> ours. None: carries no learned value (a count of neighbours that
# depends on the input size).
_HCNET = [
    (r'patch_embed\.(.+)', r'backbone.stem.\1'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.mean_num', None),
    (r'layers\.(\d+)\.blocks\.(\d+)\.fc_0\.weight', r'backbone.stages.\1.\2.conduction.to_k.weight'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.norm2\.(.+)', r'backbone.stages.\1.\2.refinement.norm.\3'),
    (r'layers\.(\d+)\.blocks\.(\d+)\.mlp\.(.+)', r'backbone.stages.\1.\2.refinement.\3'),
    (r'layers\.(\d+)\.downsample\.reduction\.(.+)', r'backbone.downsamples.\1.conv.\2'),
    (r'layers\.(\d+)\.downsample\.norm\.(.+)', r'backbone.downsamples.\1.norm.\2'),
    (r'head\.(.+)', r'head.fc.\1'),
]


def convert_state_dict(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The authors' HcNet state dict in our names.

    Their model has the isotropic stencil, so load the result into
    ``HcNet(stencil='isotropic')``. The final norm becomes the norm of the last stage.

    Args:
        state_dict (dict): Keys as published (``patch_embed.*``, ``layers.*``, ``norm.*``,
            ``head.*``). A leading ``module.`` of a distributed run is removed.

    Returns:
        dict: New dict with keys ``backbone.*`` and, where the source has a head, ``head.fc.*``.

    Raises:
        ValueError: A key that the authors' HcNet does not have; the message lists such keys.
    """
    if all(key.startswith('module.') for key in state_dict):
        state_dict = {key[len('module.'):]: value for key, value in state_dict.items()}
    last = max((int(m[1]) for m in map(re.compile(r'layers\.(\d+)\.').match, state_dict) if m),
               default=None)
    if last is None:
        raise ValueError('not a state dict of the authors\' HcNet: no key begins with "layers."; '
                         f'the first keys are {list(state_dict)[:5]}')
    rules = _HCNET + [(r'norm\.(.+)', rf'backbone.norm{last}.\1')]

    converted, unknown = {}, []
    for key, value in state_dict.items():
        for pattern, target in rules:
            match = re.fullmatch(pattern, key)
            if match:
                if target is not None:
                    converted[match.expand(target)] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'{len(unknown)} keys are not those of the authors\' HcNet: '
                         f'{", ".join(unknown)}')
    # Theirs is a 1x1 convolution on the pooled map, ours the linear layer that it is.
    return {key: value.flatten(1) if key.endswith('to_k.weight') else value
            for key, value in converted.items()}
