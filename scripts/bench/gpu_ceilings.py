"""What the card can do at most, measured with torch: bytes a second of a copy, operations a second of a bf16 product."""
import json
import statistics

import torch

COPY_BYTES, SIDE, TIMES = 4 << 30, 8192, 10


def seconds(work):
    """The median of timed repetitions, after some that are not."""
    found = []
    for turn in range(TIMES + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        found += [begin.elapsed_time(end) / 1e3] * (turn >= 3)
    return statistics.median(found)


def main():
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    del source, target
    a, b = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = seconds(lambda: a @ b)
    # A copy reads and writes.
    print(json.dumps({"torch": torch.__version__, "copy_bytes_per_second": 2 * COPY_BYTES / copy,
                      "bf16_operations_per_second": 2 * SIDE**3 / product}))


if __name__ == "__main__":
    main()
