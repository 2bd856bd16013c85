"""Sharded training (FSDP2): weights, gradients and moments split over the processes, gathered block by block when needed.

Coordinate-wise work is done on the own part of each process, `local`; an inner product of whole tensors is the sum of those
of the parts, `sum_over_processes`. FSDP is told to sum gradients, since a loss here is a sum with a weight of its own.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Split `model` in place over the processes: `blocks` one by one, the rest together.

    Process 0's weights count. Raises BadInput outside of several processes. torch.distributed.fsdp.fully_shard.
    """
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    check_processes()
    parameters = list(model.parameters())
    for parameter in parameters:  # adapters drawn by each process for itself would be mixed
        distributed.broadcast(parameter.data, src=0)
    narrow = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in parameters)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if narrow else None)
    mesh = init_device_mesh(parameters[0].device.type, (distributed.get_world_size(),))
    for module in (*blocks, model):
        # The root, too: by default it stays together until a backward pass, which an evaluation does not have, and its
        # parameters then are not those that are trained.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def check_processes() -> None:
    """Raises BadInput where there is one process alone, which has nobody to share a model with."""
    if not torch.distributed.is_initialized():
        raise BadInput("--shard splits a model over several processes, and this is one: start it with torchrun.")


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was here. Raises BadInput for a model that was split in another way (tensor parallel)."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        return True
    if any(hasattr(parameter, "placements") for parameter in model.parameters()):
        raise BadInput("the model is split over processes, but not by FSDP2: unsplit it, or split it with shard().")
    return False


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, on the same memory; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes must ask for at once; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor  # type: ignore[operator]


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """The reverse of `local`: a part of this process as a sharded tensor that is split like `like`."""
    if not hasattr(like, "placements"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def from_whole(tensor: Tensor, like: Tensor) -> Tensor:
    """The reverse of `whole`, from a tensor that every process has."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of what each process has, in place."""
    torch.distributed.all_reduce(tensor)
    return tensor


def outline(model: nn.Module) -> nn.Module:
    """A copy of the model without its weights, for `gathered` to fill."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict(empty))


def gathered(model: nn.Module, outline: nn.Module) -> nn.Module:
    """`outline`, filled in every process with the weights of the sharded model that it was taken from."""
    pairs = zip(outline.named_parameters(), model.named_parameters(), strict=True)
    full = {id(empty): nn.Parameter(whole(p.detach()), p.requires_grad) for (_, empty), (_, p) in pairs}
    for module in outline.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = full[id(parameter)]
    return outline
