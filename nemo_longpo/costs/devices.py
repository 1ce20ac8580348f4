"""Memory, peak speed and links of GPUs, from the makers' data sheets; dense bf16, without sparsity."""

from dataclasses import dataclass

from nemo_longpo.errors import InputError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU: `memory` in bytes as torch reports it; speeds per GPU and second, links in one direction.
    `memory_bandwidth` counts bytes read or written.

    `network` assumes one network card per GPU, as in the makers' reference machines.
    """

    name: str
    memory: float
    memory_bandwidth: float
    peak_flops: float
    nvlink: float
    network: float
    pcie: float


def _gpu(name: str, gib: float, bandwidth: float, peak: float, links: tuple[float, float, float]) -> Gpu:
    nvlink, network, pcie = links
    return Gpu(
        name=name,
        memory=gib * GIB,
        memory_bandwidth=bandwidth,
        peak_flops=peak,
        nvlink=nvlink,
        network=network,
        pcie=pcie,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-80gb", 79.2, 2.04e12, 312e12, (300e9, 25e9, 32e9)),
        _gpu("a800-80gb", 79.2, 2.04e12, 312e12, (200e9, 25e9, 32e9)),
        _gpu("h100-80gb", 79.1, 3.35e12, 989e12, (450e9, 50e9, 64e9)),
        _gpu("h800-80gb", 79.1, 3.35e12, 989e12, (200e9, 50e9, 64e9)),
        _gpu("h20-96gb", 95.0, 4.0e12, 148e12, (450e9, 50e9, 64e9)),
        _gpu("h200-141gb", 139.8, 4.8e12, 989e12, (450e9, 50e9, 64e9)),
        _gpu("b200-180gb", 178.0, 8.0e12, 2250e12, (900e9, 50e9, 64e9)),
    )
}

# As `torch.cuda.get_device_name` spells them, with their FLOP/s and, where it is one, the name above. Cards of one name
# differ in speed by their form, so names match whole.
_DEVICES = {
    "NVIDIA A100-SXM4-40GB": (312e12, None),
    "NVIDIA A100-PCIE-40GB": (312e12, None),
    "NVIDIA A100-SXM4-80GB": (312e12, "a100-80gb"),
    "NVIDIA A100 80GB PCIe": (312e12, None),
    "NVIDIA A800-SXM4-80GB": (312e12, "a800-80gb"),
    "NVIDIA A800 80GB PCIe": (312e12, None),
    "NVIDIA H100 80GB HBM3": (989e12, "h100-80gb"),
    "NVIDIA H100 PCIe": (756e12, None),
    "NVIDIA H100 NVL": (835e12, None),
    "NVIDIA H800": (989e12, "h800-80gb"),
    "NVIDIA H20": (148e12, "h20-96gb"),
    "NVIDIA H200": (989e12, "h200-141gb"),
    "NVIDIA H200 NVL": (836e12, None),
    "NVIDIA GH200 480GB": (989e12, None),
    "NVIDIA B200": (2250e12, "b200-180gb"),
    "NVIDIA L40S": (362e12, None),
}


def find_gpu(name: str) -> Gpu:
    """Return a preset by its name. Raises InputError if there is none."""
    if name not in GPUS:
        raise InputError(f"--gpu {name} is not known; choose one of {', '.join(GPUS)}, and --gpu-memory for its size.")
    return GPUS[name]


def peak_of_device(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a device by its CUDA name, None if it is not known."""
    peak, _ = _DEVICES.get(device_name, (None, None))
    return peak


def preset_of_device(device_name: str) -> str | None:
    """Return the name of a device's preset by its CUDA name, None if it has none."""
    _, preset = _DEVICES.get(device_name, (None, None))
    return preset
