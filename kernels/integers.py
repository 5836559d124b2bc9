"""Whole numbers of the host: Triton's own, of the same names, take a microsecond each, as kernels may call them too."""


def cdiv(number: int, by: int) -> int:
    """number / by, rounded up."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below `number`, which is above 0."""
    return 1 << (number - 1).bit_length()
