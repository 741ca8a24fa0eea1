"""Work that one of several processes does for all of them."""

from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


def on_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Call `work` on the main process while the others wait; its errors are raised in all.

    Every process calls this. Errors other than OSError and ValueError stay in the main process.
    """
    failure: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except (OSError, ValueError) as error:
            failure[0] = error
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
