"""What holds for every test: the interpreter where there is no GPU, poisoned allocations, a fixed seed."""

import os

import ahead
import beside
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before fastseg.kernels is imported
    import triton_interpreter

    triton_interpreter.make_bfloat16_exact()

if torch.version.cuda is None:
    # torchvision's CUDA wheel cannot load its library beside a CPU-only torch, but still asks for these two ops.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    items.sort(key=process)


def process(item):
    """0: runs in the first process; 1: in the second, which has less to do; 2: in the second, as it needs compiling."""
    return 2 if ahead.jobs(item) else int(item.get_closest_marker("beside") is not None)


def pytest_configure(config):
    beside.take_part(config)


def pytest_collection_finish(session):
    """What needs compiling, and what is marked `beside`, runs in a second process, as the other tests use little more
    than one core; unless nothing compiles, that is all there is to run, or somebody watches."""
    option, apart = session.config.option, [item for item in session.items if process(item)]
    if option.collectonly:
        return
    jobs = [job for item in apart for job in ahead.jobs(item)]
    if jobs and len(apart) < len(session.items) and option.capture != "no" and not option.usepdb:
        beside.start(session.config, apart)
    else:
        ahead.begin(jobs)


def pytest_sessionfinish():
    ahead.end()


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """New memory holds NaN (integers: their largest value), from Python and from C++ alike: a kernel that leaves an
    output unwritten, or reads what nothing wrote, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For small layers, which gain nothing from more: on a busy machine, waiting for threads took 25x as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact_products():
    """float32 products are not rounded to TF32, as PyTorch allows by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
