"""Pools of threads when a process ends or forks."""

from __future__ import annotations

import subprocess

from child import ended

PRELUDE = """
import ctypes, os, sys, threading, time
from minigrad.runtimes.cpu_pool import Launch, Pool, pool_for
from minigrad.runtimes.jit_compiler import host_compiler
kernels, code = host_compiler().compile('''
define void @count(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
  %at = load ptr, ptr %args
  %old = atomicrmw add ptr %at, i64 1 monotonic
  ret void
}''', ["count"])
words = (ctypes.c_int64 * 1)()
args = (ctypes.c_int64 * 1)(ctypes.addressof(words))
table = (Launch * 100)(*[Launch(kernels["count"], ctypes.addressof(args), 16, 1, 0)] * 100)
pool = Pool(3)
def run():
    pool.run(ctypes.addressof(table), 100, 256)
"""


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return ended("-W", "ignore", "-c", PRELUDE + script)


def test_the_process_ends_while_workers_idle() -> None:
    result = _python("run(); print(words[0])")
    assert (result.returncode, result.stdout, result.stderr) == (0, "1600\n", "")


def test_the_process_ends_while_a_daemon_thread_computes() -> None:
    result = _python("""
def forever():
    while True:
        run()
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.1)
print(words[0] > 0)
""")
    assert (result.returncode, result.stdout) == (0, "True\n")


def test_exit_handlers_may_still_compute() -> None:
    result = _python("""
import atexit
atexit.register(lambda: (run(), print("late", words[0])))
""")
    assert (result.returncode, result.stdout) == (0, "late 1600\n")
    early = "import atexit\natexit.register(lambda: (run(), print('after', words[0])))\n"
    result = ended("-c", early + PRELUDE + "run()")
    assert (result.returncode, result.stdout) == (0, "after 3200\n")


def test_a_fork_gets_workers_of_its_own() -> None:
    result = _python("""
run()
assert len(pool._workers) == 2
for _ in range(3):
    child = os.fork()
    if child == 0:
        words[0] = 0
        run()
        ok = words[0] == 1600 and len(pool._workers) == 2
        ok = ok and all(worker.is_alive() for worker in pool._workers)
        addresses, code = host_compiler().compile("define void @f() {\\n ret void\\n}", ["f"])
        ok = ok and addresses["f"] != 0
        pool.close()
        os._exit(0 if ok else 1)
    run()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words[0])
""")
    assert (result.returncode, result.stdout) == (0, "0 3200\n0 4800\n0 6400\n"), result.stderr


def test_a_fork_while_another_thread_computes() -> None:
    result = _python("""
going = True
def busy():
    while going:
        run()
thread = threading.Thread(target=busy)
thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        words[0] = 0
        run()
        os._exit(0 if words[0] == 1600 else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
going = False
thread.join()
print(codes)
""")
    assert (result.returncode, result.stdout) == (0, f"{[0] * 10}\n"), result.stderr


def test_nothing_here_imports_numpy() -> None:
    result = _python("run(); print([name for name in sys.modules if name.startswith('numpy')])")
    assert result.stdout == "[]\n"
