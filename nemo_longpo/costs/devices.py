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


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="a100-80gb", memory=79.2 * GIB, memory_bandwidth=2.04e12, peak_flops=312e12, nvlink=300e9, network=25e9
        ),
        Gpu(
            name="a800-80gb", memory=79.2 * GIB, memory_bandwidth=2.04e12, peak_flops=312e12, nvlink=200e9, network=25e9
        ),
        Gpu(
            name="h100-80gb", memory=79.1 * GIB, memory_bandwidth=3.35e12, peak_flops=989e12, nvlink=450e9, network=50e9
        ),
        Gpu(
            name="h800-80gb", memory=79.1 * GIB, memory_bandwidth=3.35e12, peak_flops=989e12, nvlink=200e9, network=50e9
        ),
        Gpu(name="h20-96gb", memory=95.0 * GIB, memory_bandwidth=4.0e12, peak_flops=148e12, nvlink=450e9, network=50e9),
        Gpu(
            name="h200-141gb",
            memory=139.8 * GIB,
            memory_bandwidth=4.8e12,
            peak_flops=989e12,
            nvlink=450e9,
            network=50e9,
        ),
        Gpu(
            name="b200-180gb",
            memory=178.0 * GIB,
            memory_bandwidth=8.0e12,
            peak_flops=2250e12,
            nvlink=900e9,
            network=50e9,
        ),
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
    """Return a preset by its name. Raises InputError if there is none."""
    if name not in GPUS:
        raise InputError(f"--gpu {name} is not known; choose one of {', '.join(GPUS)}, and --gpu-memory for its size.")
    return GPUS[name]


def peak_of_device(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a device by its CUDA name, None if it is not known."""
    return _DEVICES.get(device_name)
