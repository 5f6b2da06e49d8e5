"""The package's number formats (`steer2edit.stress.quantisation`) against torchao's, bit by bit.

The package writes its formats out in plain torch, so that no further library is needed to test an edit. Here they are
compared with torchao on Gaussian matrices, with outliers, at three scales and in the shapes of a real model. nf4, which
torchao no longer has, rests on the rows worked out by hand in tests/stress/test_quantisation.py, as all formats do.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from steer2edit.stress.quantisation import FORMATS, INT4_GROUP, MXFP4_BLOCK

try:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType
except ImportError as error:
    raise SystemExit(
        f"this benchmark compares with torchao: pip install --no-deps torchao==0.18.0 ({error})"
    ) from error

SHAPES = ((64, 576), (32, 1536))
SCALES = (0.02, 1.0, 30.0)


def _torchao(config: object, weight: Tensor) -> Tensor:
    """What torchao stores for a linear layer with this weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantize_(layer, config)
    stored: Tensor = layer.weight.dequantize()
    return stored.float()


def _int4(weight: Tensor) -> Tensor:
    """torchao wants whole groups: what is left over at the end of a row is one of its own."""
    whole = weight.shape[1] // INT4_GROUP * INT4_GROUP
    parts = [(weight[:, :whole], INT4_GROUP), (weight[:, whole:], weight.shape[1] - whole)]
    return torch.cat([_int4_groups(part, group) for part, group in parts if part.numel()], dim=1)


def _int4_groups(weight: Tensor, group: int) -> Tensor:
    config = IntxWeightOnlyConfig(torch.int4, PerGroup(group), MappingType.ASYMMETRIC)
    return _torchao(config, weight.contiguous())


def _mxfp4(weight: Tensor) -> Tensor:
    block = MXTensor.to_mx(weight.contiguous(), torch.float4_e2m1fn_x2, MXFP4_BLOCK)
    stored: Tensor = block.dequantize(torch.float32)
    return stored


REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda weight: _torchao(Int8WeightOnlyConfig(version=2), weight),
    "fp8": lambda weight: _torchao(Float8WeightOnlyConfig(), weight),
    "int4": _int4,
    "mxfp4": _mxfp4,
}


def _matrices() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for scale in SCALES:
            weight = torch.randn(shape, generator=generator) * scale
            weight[0, :3] *= 50
            yield weight


def verify_formats() -> int:
    """How many matrices come out as torchao's do, in all formats; ends the program with a wrong one."""
    checked = 0
    for weight in _matrices():
        for name, reference in REFERENCES.items():
            ours, theirs = FORMATS[name].rounded(weight), reference(weight)
            if not torch.equal(ours, theirs):
                differing = int((ours != theirs).sum())
                raise SystemExit(f"WRONG: {name} differs from torchao's in {differing} of {weight.numel()} entries.")
            checked += 1
    return checked


if __name__ == "__main__":
    print(f"{verify_formats()} matrices are bit for bit torchao's")
