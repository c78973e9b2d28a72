"""The two stacks that mmhcnet runs on, and what differs between them.

Both give the same import names, from differently named distributions.
"""

# {stack: {import name: (distribution, the version that the tests pass with)}}
STACKS = {
    # The maintained continuation of OpenMMLab.
    'onedl': {
        'mmengine': ('onedl-mmengine', '0.10.12'),
        'mmcv': ('onedl-mmcv', '2.3.6'),
        'mmdet': ('onedl-mmdetection', '3.5.1'),
        'mmseg': ('onedl-mmsegmentation', '1.4.2'),
        'mmpretrain': ('onedl-mmpretrain', '1.3.6'),
    },
    # OpenMMLab's own last releases.
    'openmmlab': {
        'mmengine': ('mmengine', '0.10.7'),
        # The last that mmdet 3.3.0 accepts.
        'mmcv': ('mmcv', '2.1.0'),
        'mmdet': ('mmdet', '3.3.0'),
        'mmseg': ('mmsegmentation', '1.2.2'),
        'mmpretrain': ('mmpretrain', '1.2.0'),
    },
}

# Every distribution that writes the folder mmcv.
MMCVS = ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite')

# What mmcv's operators are compiled with.
BUILD_TOOLS = {
    # onedl-mmcv's pyproject.toml is refused by older ones.
    'onedl': '"setuptools>=80" wheel ninja psutil packaging',
    # torch 2.1's C++ extensions import from pkg_resources what 70 has no longer; wheel 0.46 leaves
    # making wheels to setuptools 70.
    'openmmlab': '"setuptools<70" "wheel<0.46" ninja psutil packaging',
}
