"""The ops as Triton kernels, for GPUs where the CUDA library is not built. Installed as `lgld_ops.triton`.

Each file holds one op: its kernels and a function per pass that launches them on the current device's current stream. They take
checked operands and write into results that the caller allocates; they know nothing of schemas, autograd or the package around.
With TRITON_INTERPRET=1 in the environment before Triton is imported, they run on CPU tensors.
"""

from . import ffm, involution2d, involution_layer

__all__ = ["ffm", "involution2d", "involution_layer"]
