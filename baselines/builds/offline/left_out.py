"""What stands in a pruned package for a name whose module was left out: fails by name as soon as it is used."""


class LeftOut:
    """Stands where `name` was imported. Good enough for an annotation, a base class or a default, and nothing else."""

    def __init__(self, name: str) -> None:
        self.__dict__["_left_out"] = name

    def _fail(self, *arguments, **options):
        raise ImportError(f"{self._left_out} is needed here, but the pruned tree left it out")

    __call__ = __bool__ = __iter__ = __len__ = __int__ = __index__ = __add__ = __sub__ = __mul__ = __lt__ = _fail

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return LeftOut(f"{self._left_out}.{attribute}")

    def __or__(self, other):
        return self

    __ror__ = __or__

    def __getitem__(self, index):
        return self

    def __mro_entries__(self, bases):
        return ()
