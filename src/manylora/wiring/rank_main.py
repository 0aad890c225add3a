"""A rank behind the first: `python -m manylora.wiring.rank_main SOCKET PARENT_PID`.

`engine/execution/ranks/processes.py` starts it. It ends with rank 0: the kernel kills it where rank 0's first thread
has started it, and a thread waits for the end of the socket in any case.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import msgspec
import torch

from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.engine.execution.batch import BatchBuilder
from manylora.engine.execution.ranks.commands import Command, CommandKind, CommandSocket
from manylora.engine.execution.ranks.group import join_group, meeting_in
from manylora.engine.execution.ranks.placements import RankPlacements
from manylora.engine.execution.ranks.processes import LOST_OTHERS
from manylora.engine.execution.ranks.worker import RankWorker
from manylora.errors import ManyloraError, MemoryPlanImpossible, StartupError
from manylora.failure import Failure
from manylora.kernels.collectives import CollectiveFailed
from manylora.kernels.interface import Kernels
from manylora.kernels.select import select_kernels
from manylora.kernels.storage_form import StorageForm
from manylora.models.checkpoint_files import (
    checked_entries,
    fingerprint,
    form_with_stored,
)
from manylora.models.llama import LlamaModel
from manylora.models.sizes import kv_block_bytes, step_bytes, weight_bytes, widened_bytes
from manylora.models.spec import ModelSpec, read_spec
from manylora.models.tensor_parallel import Share
from manylora.models.weights import load_weights
from manylora.system.byte_sizes import byte_text
from manylora.system.collector import exempt_modules
from manylora.system.end_of_parent import die_with_parent
from manylora.system.failures import described
from manylora.system.freed_memory import release_regularly
from manylora.system.log_lines import configure_logs
from manylora.system.resources import find_resources
from manylora.system.standard_streams import make_streams_lossy
from manylora.wiring.ranks import RankBegin, RankOrder, RankSizes, rank_device, rank_facts, rank_threads

log = logging.getLogger(__name__)


def main(end: int, parent_pid: int) -> int:
    """Build a rank and run it; return 0 after STOP or the end of rank 0, `LOST_OTHERS`, or 1 after another failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent_pid:
        die_with_parent(parent_pid)
    make_streams_lossy()
    configure_logs("rank")
    release_regularly()
    exempt_modules()
    threading.Thread(target=partial(_end_with_socket, end), name="manylora-rank-0", daemon=True).start()
    commands = CommandSocket(socket.socket(fileno=end))
    try:
        worker = _build(commands)
    except Exception as error:
        log.exception("rank.start_failed")
        commands.send(Command.of_text(CommandKind.FAILED, json.dumps(_failure(error).to_json()).encode()))
        return LOST_OTHERS if isinstance(error, CollectiveFailed) else 1
    try:
        worker.run(commands)
    except CollectiveFailed as error:
        log.error("rank.ended cause=%s", error)
        return LOST_OTHERS
    except Exception:
        log.exception("rank.failed")
        return 1
    return 0


def _end_with_socket(end: int) -> None:
    """End this process, in a step too, when rank 0 has closed its end of the socket."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def _build(commands: CommandSocket) -> RankWorker:
    order = msgspec.json.decode(_text(commands, CommandKind.ORDER), type=RankOrder)
    config, base_dir = order.config, Path(order.base_dir)
    model, engine = config.model, config.engine
    kernels = _kernels(config, order.rank)
    spec = read_spec(base_dir)
    share = Share(spec, model.tensor_parallel, order.rank)
    facts = rank_facts(config, fingerprint(base_dir, spec), kernels)
    commands.send(Command.of_text(CommandKind.HELLO, msgspec.json.encode(facts)))
    begin = msgspec.json.decode(_text(commands, CommandKind.BEGIN), type=RankBegin)
    sizes = begin.sizes
    form = form_with_stored(kernels.form, spec, checked_entries(base_dir, spec))
    _refuse_too_little_memory(share.own, kernels, form, sizes, share.degree)
    commands.send(Command(CommandKind.FITS))
    meeting = meeting_in(begin.meeting, share.degree)
    ranks = join_group(model.collectives, meeting, order.rank, share.degree, model.rank_timeout_s)
    weights = load_weights(base_dir, spec, kernels, share=share)
    llama = LlamaModel(spec, weights, kernels, max_positions=sizes.max_positions, share=share, ranks=ranks)
    kv = kernels.new_kv(
        layers=spec.num_layers,
        num_blocks=sizes.kv_blocks,
        block_size=sizes.block_size,
        kv_heads=share.own.kv_heads,
        head_dim=spec.head_dim,
    )
    adapters = RankPlacements(kernels.lora_dtype, kernels.place)
    builder = BatchBuilder(
        kernels,
        adapters,
        max_rows=sizes.max_rows,
        block_size=sizes.block_size,
        vocab=spec.vocab,
        hidden=spec.hidden,
    )
    assert engine.max_step_tokens == sizes.max_rows
    commands.send(Command(CommandKind.READY))
    return RankWorker(llama, kv, builder, adapters)


def _kernels(config: Config, rank: int) -> Kernels:
    threads = rank_threads(config, config.model.threads or find_resources().threads)
    kernels = select_kernels(
        config.model.kernels,
        threads,
        device=rank_device(config, rank),
        quantize=config.model.quantize,
        spin_us=config.model.spin_us,
        cache_dir=cache_dir(config),
    )
    torch.set_num_threads(1 if kernels.owns_threads else threads)
    return kernels


def _refuse_too_little_memory(
    own: ModelSpec, kernels: Kernels, form: StorageForm, sizes: RankSizes, ranks: int
) -> None:
    """Raise `MemoryPlanImpossible` if the machine, or the card, has too little left for this rank's share alone."""
    needed = weight_bytes(own, form) + step_bytes(own, sizes.max_rows, ranks) + widened_bytes(own, form)
    needed += sizes.kv_blocks * kv_block_bytes(own, form, sizes.block_size)
    left = kernels.own_memory_bytes or find_resources((os.getpid(),)).memory_bytes
    if needed > left:
        raise MemoryPlanImpossible(
            f"its share of weights, KV cache and step buffers takes {byte_text(needed)}, and this machine has "
            f"{byte_text(left)} left; lower engine.kv_bytes or engine.max_model_len"
        )


def _text(commands: CommandSocket, kind: CommandKind) -> bytes:
    command = commands.receive()
    if command is None:
        os._exit(0)
    assert command.kind is kind, f"{command.kind!r} in place of {kind!r}"
    return command.text


def _failure(error: Exception) -> Failure:
    if isinstance(error, ManyloraError):
        return Failure.of(error)
    return Failure.of(StartupError(described(error) or f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
