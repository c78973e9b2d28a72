"""The two stacks that mmhcnet works with, in one table.

Nothing is imported: setup.py and the doctor read it where nothing else can be. The requirement
files and docs/compatibility.md repeat it for pip and for people, and tests compare them with it.
"""

# Import name: (distribution, the version that the tests pass with) of OneDL, the maintained
# continuation of OpenMMLab, and of OpenMMLab's own last releases.
_PINS = {
    'mmengine': (('onedl-mmengine', '0.10.12'), ('mmengine', '0.10.7')),
    # 2.1.0 is the last that mmdet 3.3.0 accepts.
    'mmcv': (('onedl-mmcv', '2.3.6'), ('mmcv', '2.1.0')),
    'mmdet': (('onedl-mmdetection', '3.5.1'), ('mmdet', '3.3.0')),
    'mmseg': (('onedl-mmsegmentation', '1.4.2'), ('mmsegmentation', '1.2.2')),
    'mmpretrain': (('onedl-mmpretrain', '1.3.6'), ('mmpretrain', '1.2.0')),
}

# {stack: {import name: (distribution, version)}}
STACKS = {
    stack: {name: pins[i] for name, pins in _PINS.items()}
    for i, stack in enumerate(('onedl', 'openmmlab'))
}

# What mmcv's operators are compiled against, and therefore installed before it.
TORCH = {
    'onedl': {'torch': '2.10.0', 'torchvision': '0.25.0'},
    'openmmlab': {'torch': '2.1.2', 'torchvision': '0.16.2'},
}

# What a stack imports without asking for it.
UNASKED = {'onedl': (), 'openmmlab': ('ftfy', 'regex')}

# What mmcv's operators are compiled with.
BUILD_TOOLS = {
    # onedl-mmcv's pyproject.toml is refused by older ones.
    'onedl': '"setuptools>=80" wheel ninja psutil packaging',
    # torch 2.1's C++ extensions import from pkg_resources what 70 has no longer; wheel 0.46 leaves
    # making wheels to setuptools 70.
    'openmmlab': '"setuptools<70" "wheel<0.46" ninja psutil packaging',
}
