"""How the programs of a comparison take turns: one JSON line when ready, then one for each line `go`, until the end of
the input. Programs stay alive while others have their turns, so that nobody pays for starting up."""
import json
import sys
import time

# What libraries print goes to standard error; only answers go to standard output.
ANSWERS = sys.stdout
sys.stdout = sys.stderr


def read_work(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def answer(**fields):
    print(json.dumps(fields), file=ANSWERS, flush=True)


def awaited():
    """Waits for a turn; false at the end of the input."""
    return sys.stdin.readline().strip() == "go"


def serve(repetitions, prepare, repeat, **ready):
    """Answers each turn with the seconds of `repeat(prepare(repetition))`, preparation left out, and with the fields
    that it returns."""
    answer(ready=True, **ready)
    turn = 0
    while awaited():
        given = prepare(repetitions[turn % len(repetitions)])
        begin = time.perf_counter()
        fields = repeat(given)
        answer(seconds=time.perf_counter() - begin, **fields)
        turn += 1
