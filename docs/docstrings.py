"""What the docstrings of this project have and Markdown has not: roles, and ``::`` before code."""

import re

import griffe


class Docstrings(griffe.Extension):
    """``:func:`~mmhcnet.ops.heat_step``` becomes code of its last name."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            text = re.sub(r':\w+:`~[\w.]*?(\w+)`', r'`\1`', obj.docstring.value)
            text = re.sub(r':\w+:`([\w.]+)`', r'`\1`', text)
            obj.docstring.value = re.sub(r'::$', ':', text, flags=re.MULTILINE)
