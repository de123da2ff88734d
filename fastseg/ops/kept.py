"""Tensors that are kept from one call to the next."""

import functools
from concurrent.futures import Future
from threading import Thread


def kept(maxsize):
    """Decorates a function of hashable arguments whose result is kept, the last `maxsize` of them.

    It runs in a thread of its own, as what a thread may be in at the first call would stay with the result: the memory
    pool of torch.compile(mode="reduce-overhead"), which refuses tensors that outlive a graph, a default device or
    inference mode. Results must be whole when it returns, for any stream, as those of `.to(device)` from a CPU are.
    """

    def decorate(function):
        @functools.lru_cache(maxsize=maxsize)
        @functools.wraps(function)
        def apart(*arguments):
            outcome = Future()  # of no executor, as these refuse work of threads that outlive the main one
            Thread(target=_settle, args=(outcome, function, arguments)).start()
            return outcome.result()

        return apart

    return decorate


def _settle(outcome, function, arguments):
    try:
        outcome.set_result(function(*arguments))
    except BaseException as error:
        outcome.set_exception(error)
