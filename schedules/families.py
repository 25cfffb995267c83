"""Every schedule family, imported once so that it registers itself."""

import awq_tvm.schedules.arm.dot_matmul
import awq_tvm.schedules.arm.float_matmul
import awq_tvm.schedules.attention.rule
import awq_tvm.schedules.cpu.dense
import awq_tvm.schedules.cuda.matmul
import awq_tvm.schedules.metal.matmul
import awq_tvm.schedules.x86.dot_matmul
import awq_tvm.schedules.x86.float_matmul  # noqa: F401
