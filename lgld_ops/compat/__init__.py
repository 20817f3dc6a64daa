"""Drop-ins for the public implementations of involution: change the import line, keep constructor calls and checkpoints.

| instead of | import |
|---|---|
| d-li14/involution, `involution` | `lgld_ops.compat.d_li14.involution` |
| ChristophReich1996/Involution, `Involution2d` | `lgld_ops.compat.christophreich1996.Involution2d` |
| shikishima-TasakiLab/Involution-PyTorch, `Involution2d` | `lgld_ops.compat.shikishima.Involution2d` |
| timm 0.4.12, `Involution` | `lgld_ops.compat.timm.Involution` |
| frgfm/Holocron, `Involution2d` | `lgld_ops.compat.holocron.Involution2d` |

Each has its source's positional order, defaults, state-dict keys, initial weights and training behaviour, and computes with
`lgld_ops.involution2d`. None of the sources is needed. LGLD-Net's own layer is `lgld_ops.Involution2d`.

All of them pool x before they generate the kernels, where they have a stride. Where that leaves more or fewer kernels than
there are windows (a stride that doesn't divide the image; a padding that isn't ``dilation * (kernel_size - 1) / 2``), the
sources fail in a reshape, read out of bounds, or silently broadcast a map of one row or column. Here it is a ValueError that
names the sizes, raised before any statistic is updated.
"""

from . import christophreich1996, d_li14, holocron, shikishima, timm

__all__ = ["christophreich1996", "d_li14", "holocron", "shikishima", "timm"]
