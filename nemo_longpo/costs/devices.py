"""What GPUs bring: memory, peak speed, links. From the makers' data sheets; dense bf16, without sparsity."""

from dataclasses import dataclass

from nemo_longpo.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """`memory` is what torch reports as total, in bytes; speeds are per GPU and second, links in one direction.

    `network` assumes one network card per GPU, as in the makers' reference machines.
    """

    name: str
    memory: float
    peak_flops: float
    nvlink: float
    network: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80gb", 79.2 * GIB, 312e12, 300e9, 25e9),
        Gpu("a800-80gb", 79.2 * GIB, 312e12, 200e9, 25e9),
        Gpu("h100-80gb", 79.1 * GIB, 989e12, 450e9, 50e9),
        Gpu("h800-80gb", 79.1 * GIB, 989e12, 200e9, 50e9),
        Gpu("h20-96gb", 95.0 * GIB, 148e12, 450e9, 50e9),
        Gpu("h200-141gb", 139.8 * GIB, 989e12, 450e9, 50e9),
        Gpu("b200-180gb", 178.0 * GIB, 2250e12, 900e9, 50e9),
    )
}

# As `torch.cuda.get_device_name` spells them. Cards of one name differ in speed by their form, so names match whole.
_DEVICES = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    "NVIDIA A800 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H800": 989e12,
    "NVIDIA H20": 148e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 836e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
}


def find_gpu(name: str) -> Gpu:
    """A preset by name. Raises InputError."""
    if name not in GPUS:
        raise InputError(f"--gpu {name} is not known; choose one of {', '.join(GPUS)}, and --gpu-memory for its size.")
    return GPUS[name]


def peak_of_device(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by its CUDA name; None where it is not known."""
    return _DEVICES.get(device_name)
