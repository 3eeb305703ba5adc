"""Makes a failed weight transfer end the run with its reason.

verl's sender (actor worker) waits for an acknowledgement of each bucket without a time limit. Its receiver (vLLM
worker) closes its socket without an acknowledgement if it fails. The run then hangs, and the reason is lost. Here:
* A receiver that fails answers with its traceback. The sender raises it as `WeightTransferError`.
* While it waits, the sender watches the Ray call that runs the receiver. A receiver that died, or failed before it
  opened its socket, ends the wait too.
* Every Ray cluster has its own socket. verl names the socket by the number of the Ray job. Two runs on one machine,
  each with its own Ray, share that number. One run's receiver could then take the other run's weights.
Left out: retries, and time limits on a receiver that is alive and busy.
"""

import concurrent.futures
import functools
import os
import traceback

import wrapt
import zmq

from verl_cast.platform.expect import expect_attribute, expect_mentions, expect_parameters

POLL_MS = 500
# verl's acknowledgements are empty, so any prefix would do.
FAILURE = b"verl_cast: weight transfer failed\n"

# The Ray call that runs a receiver, by the socket address of its sender, until that sender starts.
_receiver_calls: dict[str, concurrent.futures.Future] = {}


class WeightTransferError(RuntimeError):
    """The rollout worker did not load the new weights; the message contains the worker's error."""


def of_this_cluster(zmq_handle: str) -> str:
    """The socket's address plus the raylet's process id, which Ray's workers and their children share."""
    return f"{zmq_handle}-{os.environ.get('RAY_RAYLET_PID', '')}"


def describe(error: BaseException) -> str:
    """The first error of a chain in one line, then the whole traceback.

    After an error verl's clean-up fails too (shared memory still in use). That would hide the first error.
    """
    first, seen = error, {id(error)}
    while (earlier := first.__cause__ or first.__context__) is not None and id(earlier) not in seen:
        first = earlier
        seen.add(id(first))
    return f"{type(first).__name__}: {first}\n\n{''.join(traceback.format_exception(error))}"


class ReceiverSocket(wrapt.ObjectProxy):
    """The receiver's REP socket. It stays open until each message is answered, so that a failure can be reported."""

    def __init__(self, socket: zmq.Socket):
        super().__init__(socket)
        self._self_owes_answer = False

    def recv_pyobj(self, *args, **kwargs):
        received = self.__wrapped__.recv_pyobj(*args, **kwargs)
        self._self_owes_answer = True
        return received

    def send(self, *args, **kwargs):
        self.__wrapped__.send(*args, **kwargs)
        self._self_owes_answer = False

    def close(self, *args, **kwargs):
        if not self._self_owes_answer:
            self.__wrapped__.close(*args, **kwargs)

    def answer_failure(self, error: BaseException) -> None:
        if self._self_owes_answer:
            self.send(FAILURE + describe(error).encode())
        # 5 s at most: a sender that is gone must not keep this process alive.
        self.close(linger=5000)


class SenderSocket(wrapt.ObjectProxy):
    """The sender's REQ socket. It polls while it waits, and raises the error that the receiver reports or dies of."""

    def __init__(self, socket: zmq.Socket, receiver_call: concurrent.futures.Future | None):
        super().__init__(socket)
        self._self_receiver_call = receiver_call

    def send_pyobj(self, *args, **kwargs):
        self._wait_for(zmq.POLLOUT)
        return self.__wrapped__.send_pyobj(*args, **kwargs)

    def recv(self, *args, **kwargs):
        self._wait_for(zmq.POLLIN)
        answer = self.__wrapped__.recv(*args, **kwargs)
        if answer.startswith(FAILURE):
            reason = answer[len(FAILURE) :].decode()
            raise WeightTransferError(f"the rollout worker failed while it received the weights: {reason}")
        return answer

    def _wait_for(self, event: int) -> None:
        call = self._self_receiver_call
        while not self.__wrapped__.poll(POLL_MS, event):
            if call is None or not call.done():
                continue
            error = call.exception()
            # A receiver that ended without error may have answered between the poll and `done()`.
            if error is None and self.__wrapped__.poll(POLL_MS, event):
                return
            reason = describe(error) if error else "it returned before it had received all weights"
            raise WeightTransferError(f"the rollout worker's weight update ended early: {reason}") from error


def answer_failures(module) -> None:
    """Make both ends in verl.workers.rollout.vllm_rollout.bucketed_weight_transfer use the sockets above."""
    sender = expect_attribute(module, "BucketedWeightSender")
    receiver = expect_attribute(module, "BucketedWeightReceiver")
    sender_init_socket = expect_parameters(sender, "_init_socket", ["self"])
    receiver_init_socket = expect_parameters(receiver, "_init_socket", ["self"])
    receive_weights = expect_parameters(receiver, "receive_weights", ["self", "on_bucket_received"])
    expect_mentions(sender, "__init__", "zmq_handle")
    expect_mentions(sender, "_init_socket", "zmq_handle")
    expect_mentions(receiver, "_init_socket", "zmq_handle")
    expect_mentions(sender, "async_send_weights", "_init_socket", "socket", "send_pyobj", "recv")
    expect_mentions(sender, "_init_buffer", "socket", "send_pyobj", "recv")
    expect_mentions(receiver, "receive_weights", "_init_socket", "socket", "recv_pyobj", "send", "_cleanup")
    expect_mentions(receiver, "_init_buffer", "socket", "recv_pyobj", "send")
    expect_mentions(receiver, "_cleanup", "socket", "close")

    @functools.wraps(sender_init_socket)
    def init_sender_socket(self):
        receiver_call = _receiver_calls.pop(self.zmq_handle, None)
        self.zmq_handle = of_this_cluster(self.zmq_handle)
        sender_init_socket(self)
        self.socket = SenderSocket(self.socket, receiver_call)

    @functools.wraps(receiver_init_socket)
    def init_receiver_socket(self):
        self.zmq_handle = of_this_cluster(self.zmq_handle)
        receiver_init_socket(self)
        self.socket = self.answering_socket = ReceiverSocket(self.socket)

    @functools.wraps(receive_weights)
    def receive_or_answer_failure(self, on_bucket_received):
        try:
            return receive_weights(self, on_bucket_received=on_bucket_received)
        except Exception as error:
            self.answering_socket.answer_failure(error)
            raise

    sender._init_socket = init_sender_socket
    receiver._init_socket = init_receiver_socket
    receiver.receive_weights = receive_or_answer_failure


def watch_receiver(module) -> None:
    """In verl.workers.rollout.vllm_rollout.vllm_rollout: keep the Ray call that runs the receiver, for its sender."""
    adapter = expect_attribute(module, "ServerAdapter")
    execute_method = expect_parameters(
        adapter, "_execute_method", ["self", "method", "non_block", "timeout", "args", "kwargs"]
    )
    expect_mentions(
        adapter, "update_weights", "_execute_method", "update_weights_from_ipc", "BucketedWeightSender", "zmq_handle"
    )

    @functools.wraps(execute_method)
    async def execute_and_watch(self, method, non_block=False, timeout=None, args=(), kwargs=None):
        result = await execute_method(self, method, non_block=non_block, timeout=timeout, args=args, kwargs=kwargs)
        # Only the rank that owns the server makes the call; the others get None.
        if method == "update_weights_from_ipc" and non_block and result is not None:
            _receiver_calls[self.zmq_handle] = result.future()
        return result

    adapter._execute_method = execute_and_watch
