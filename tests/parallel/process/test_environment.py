"""The environment that is set before Paddle is imported, in separate processes, because it can be set only once."""

from __future__ import annotations

import os
import subprocess
import sys

from paddle_llm.parallel.process.environment import mkl_cpu_type, read_cpuinfo

_ZEN3 = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2 fma\n"
_ZEN4 = _ZEN3.replace("fma", "fma avx512f avx512cd avx512bw avx512dq avx512vl avx512_vnni")


def test_mkl_uses_the_vector_instructions_of_an_amd_processor():
    assert mkl_cpu_type(_ZEN4 + _ZEN4) == "7"
    assert mkl_cpu_type(_ZEN3) == "5"
    assert mkl_cpu_type(_ZEN4.replace("avx512dq", "")) == "5"  # with 7 it would end at the first matmul
    assert mkl_cpu_type(_ZEN4.replace("AuthenticAMD", "GenuineIntel")) is None
    assert mkl_cpu_type("") is None


def _mkl_after_preparing(environment: dict[str, str]) -> str:
    code = "from paddle_llm.parallel.process.environment import prepare_host; prepare_host('cpu'); import os; print(os.environ.get('MKL_DEBUG_CPU_TYPE'))"
    inherited = {name: value for name, value in os.environ.items() if name != "MKL_DEBUG_CPU_TYPE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_values_of_the_user_are_kept():
    assert _mkl_after_preparing({}) == str(mkl_cpu_type(read_cpuinfo()))
    assert _mkl_after_preparing({"MKL_DEBUG_CPU_TYPE": "5"}) == "5"


def test_a_process_on_the_cpu_sees_no_gpu():
    """A GPU build of Paddle would use a GPU when it is imported. The launcher's list and choice are hidden, too."""
    code = (
        "import os; from paddle_llm.parallel.process.environment import prepare_host; prepare_host('{}'); "
        "print([os.environ.get(name) for name in ('CUDA_VISIBLE_DEVICES', 'FLAGS_selected_gpus')])"
    )
    seen = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1", "FLAGS_selected_gpus": "1"}
    for device, left in (("cpu", ["", None]), ("gpu", ["0,1", "1"])):
        command = [sys.executable, "-c", code.format(device)]
        done = subprocess.run(command, env=seen, capture_output=True, text=True, check=True)
        assert done.stdout == f"{left}\n"


def test_products_do_not_depend_on_the_addresses_of_their_operands():
    """Exact resume depends on it: a resumed process has its tensors at other addresses."""
    import numpy as np
    import paddle

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((96, 520), (520, 1376)))
    kept, products = [], set()
    for size in (1, 3, 100, 4097, 70_001):
        kept.append(paddle.ones([size]))  # moves what is allocated behind it
        product = paddle.matmul(paddle.to_tensor(a), paddle.to_tensor(b))
        kept.append(product)
        products.add(product.numpy().tobytes())
    assert len(products) == 1


_LOGGING = """
import logging, sys, warnings
from paddle_llm.parallel.process.environment import import_paddle, prepare_host
prepare_host("cpu", 2)
import_paddle()
from paddle.distributed.fleet.utils import log_util
for log in (logging.getLogger(), log_util.logger):
    log.setLevel("INFO")
    log.info("what is done")
    log.warning("what is wrong")
    log.warning("While using tensor parallelism, the grad clip of original optimizer will be changed.")
"""


def test_logs_of_paddle_contain_warnings_and_errors_only():
    """Paddle creates their handlers when it is imported, while its warning about threads is dropped."""
    done = subprocess.run([sys.executable, "-c", _LOGGING], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [line.split(" - ")[-1] for line in lines if "what" in line] == ["what is wrong"] * 2
    assert "OMP_NUM_THREADS" not in done.stderr and "grad clip" not in done.stderr
