"""Which machine this is, without its name: processor, memory, kernel, versions."""

import os
import platform
import re
from pathlib import Path


def describe(cluster, redis):
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory_kb = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1])
    return {
        "processor": processor[1].strip() if processor else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory_kb / 1024 / 1024, 1),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "redis": redis.info["redis_version"],
        "postgresql": cluster.settings(),
    }
