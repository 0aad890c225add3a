"""Settings of the adapters."""

from dataclasses import dataclass

from manylora.config import checks
from manylora.config.declaration import setting

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """The sources of adapters, and the byte budget of each tier. 0 bytes mean: derived at start, and printed."""

    roots: tuple[str, ...] = setting(
        (),
        text="""
        Directories whose PEFT folders the server serves, each under its path below the root. `--adapter-root`, which
        may come several times, replaces the value of the file and the environment. The server lists and serves an
        adapter if both its files are regular files, its folder and its files lie below their root, and no part of its
        name is a link back to a folder above it. Links inside a root count, also those of a hub's cache (`snapshots/…`
        into `../../blobs`); the target of a link that leaves the root does not. Of several roots the first that can
        serve a name does. The list ends after 100,000 names.
        """,
    )
    stores: tuple[str, ...] = setting(
        (),
        check=checks.place,
        text="""
        Places in object storage whose PEFT folders the server serves: `s3://bucket/prefix`, `gs://bucket/prefix`,
        `az://account/container/prefix`, `https://host/prefix`. Requests reach them with `adapter_source` `s3`, `gs`,
        `az` or `https`; no request can name anything outside them. Credentials, region and endpoint come from the
        variables that each storage's own tools read (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
        `AWS_ENDPOINT_URL`; `GOOGLE_APPLICATION_CREDENTIALS`; `AZURE_STORAGE_ACCOUNT_KEY`).
        """,
    )
    hub_endpoint: str = setting(
        "https://huggingface.co",
        check=checks.url_or_empty,
        text="""
        Address of the Hugging Face hub behind `adapter_source` `hub`, with ids `org/name` or `org/name@revision`.
        Empty: no hub. A private adapter needs the caller's own token (`api_token`); the server never uses its own token
        for a caller.
        """,
    )
    registry_dir: str = setting(
        "",
        text="""
        Folder of the registry: uploaded adapters, in each tenant's repositories with numbered versions. Requests reach
        them with `adapter_source` `pbase` and ids `repo` (the newest version) or `repo/3`. Without a source, a tenant's
        own repository precedes a local adapter of that name. A tenant reaches its own repositories and those that
        others share ([the registry](registry.md)). Empty: `uploads` in `control.dir`. With `control.url` the setting
        must name the folder in which that control plane keeps uploads.
        """,
    )
    registry_url: str = setting(
        "",
        check=checks.url_or_empty,
        text="""
        Address of a control plane on another machine from which engines fetch uploads over HTTP, with
        `control.edge_token` and checked by SHA-256, in place of a shared `adapters.registry_dir`. Empty: uploads come
        from that folder.
        """,
    )
    pushed_dir: str = setting(
        "",
        text="""
        Folder of this server's copies of [pushed adapters](pushing.md): the start empties it. Empty: `pushed` in
        `metering.dir`.
        """,
    )
    pushed_bytes: int = setting(
        4 * GIB,
        low=0,
        text="""
        Bytes of all pushed adapters together, those under way included; the control plane's setting counts. One tenant
        may have all; as others come, each leaves room for others. A push beyond gets 403. 0: the server takes no
        pushes and serves none.
        """,
    )
    pushed_count: int = setting(
        64,
        low=1,
        text="""
        Names of pushed adapters that one tenant may have; the control plane's setting counts.
        """,
    )
    pushed_ttl_s: float = setting(
        86_400.0,
        low=1,
        text="""
        Seconds after its last push or request for which a pushed adapter stays, to within a twentieth; then its name is
        unknown (404) and its bytes are gone. The control plane's setting counts.
        """,
    )
    redirect_hosts: tuple[str, ...] = setting(
        (),
        text="""
        Host names to which an `https://` place or a hub may redirect a download, with http or https, at any address.
        Beyond them an `https://` place may redirect to itself only; a hub, which sends downloads to a content network,
        may redirect to any host with https at port 443 whose addresses are all public. A redirect carries no
        credentials.
        """,
    )
    default_source: str = setting(
        "local",
        text="""
        Source of a name that comes without `adapter_source`, if neither a repository of the tenant, nor a local
        adapter, nor a shared repository has that name ([the order](registry.md)). A hub receives names of the form
        `org/name` only; other names get 404.
        """,
    )
    revision_ttl_s: float = setting(
        300.0,
        low=0,
        text="""
        Seconds for which a version found at a remote source counts as its newest. The store then asks the source again,
        beside the requests, which keep the version they have.
        """,
    )
    max_rank: int = setting(
        256,
        low=1,
        text="""
        Largest rank of one projection. A larger rank gets 413 `adapter_too_large`.
        """,
    )
    max_bytes: int = setting(
        512 * MIB,
        low=1,
        text="""
        Largest weights file, in bytes. The check precedes the first read of the file.
        """,
    )
    disk_bytes: int = setting(
        8 * GIB,
        low=0,
        text="""
        Budget of the disk tier in bytes of files: packed images below the cache directory, their names, and the loads
        under way. With any budget the tier leaves a twentieth of the file system free, 1 GiB at most: where less
        is free it removes idle images, and with none left a load gets 503 `adapter_storage_unavailable`. Each server on
        a machine has a budget of its own.
        """,
    )
    host_bytes: int = setting(
        0,
        low=0,
        text="""
        Budget of the host tier: packed images in memory. On a CPU the host tier and the device bank are the same
        memory, and the smaller of the two budgets counts. With `model.tensor_parallel` it is a budget of each rank.
        """,
    )
    bank_bytes: int = setting(
        0,
        low=0,
        text="""
        Budget of the device bank. Both 0: a quarter of the memory that weights and process leave, 1 GiB at most. With
        `model.tensor_parallel` it is a budget of each rank, and counts whole images there.
        """,
    )
    load_timeout_s: float = setting(
        60.0,
        low=0.001,
        text="""
        Seconds after which a request whose adapter is not ready gets 504 `adapter_load_timeout`. The load goes on.
        """,
    )
    negative_cache_s: float = setting(
        10.0,
        low=0,
        text="""
        Seconds between a failed load of an adapter and the next try.
        """,
    )
    parallel_loads: int = setting(
        32,
        low=1,
        text="""
        Loads of different adapters that run side by side. A remote source gets three quarters of them at most, so that
        a source without answers leaves places to the others.
        """,
    )
    ingest_bytes: int = setting(
        0,
        low=0,
        text="""
        Memory for the adapters that the ingest process checks and packs, about 2.25 times the bytes of their weights
        files. A load begins as soon as it fits; an adapter that can never fit gets 413. 0: enough for one adapter of
        `adapters.max_bytes`, and at most an eighth of the memory that weights and process leave. The ingest process may
        map twice as much; a load that needs more gets 413.
        """,
    )
    quarantine_hits: int = setting(
        3,
        low=0,
        text="""
        Requests with logits that are not finite after which the store serves a version no more: later requests get 422
        `adapter_corrupt` until the source has another version. 0: never.
        """,
    )
    preload: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.adapter_name,
        text="""
        Adapters that the store brings to the device at start, before the first request for them: plain ids of local
        adapters, or `source://id` such as `hub://org/name` and `s3://bucket/name`; a tenant's upload as
        `pbase://tenant/repo/3`, its newest version as `pbase://tenant/repo`. The log names an adapter that its source
        does not have, and the store looks for it again each second. Other adapters load with their first request. A
        server with `fleet.engines` has each engine do so once, whenever it joins.
        """,
    )
    pinned: tuple[str, ...] = setting(
        (),
        is_paths=False,
        check=checks.adapter_name,
        text="""
        Adapters that stay on the device from the start on, named as in `adapters.preload`. A new version at the source
        takes the pin over. Pinned adapters have three quarters of the bank and a number of 256 at most.
        """,
    )
    idle_ttl_s: float = setting(
        0.0,
        low=0,
        text="""
        Seconds without a request after which an adapter leaves the device; its packed image stays on disk. Pinned
        adapters stay. 0: adapters leave the device only when others need the room.
        """,
    )
    strict: bool = setting(
        False,
        text="""
        Whether a tensor that the adapter's config does not name refuses the adapter, by the tensor's name
        (`adapter_unsupported`), at an upload too. `false`: the ingest leaves the tensor out, as PEFT does, and names it
        in the [ingest report](operating-adapters.md#the-ingest-report). The ingest always leaves out the copies that
        PEFT itself writes beside the tensors it reads. A change of this setting packs each adapter anew at its next
        use.
        """,
    )
    harmless_fields: tuple[str, ...] = setting(
        (),
        is_paths=False,
        text="""
        Unknown fields of an `adapter_config.json` that may have a value; `table.field` names a field inside a known
        table. Any other unknown field with a value refuses the adapter, with the release of PEFT whose fields are
        known. A known field that the ingest does not apply refuses the adapter, listed here or not. List only fields
        that cannot change a result: the [ingest report](operating-adapters.md#the-ingest-report) names each field that
        passes. A change of this setting packs each adapter anew at its next use.
        """,
    )
    chat_templates: bool = setting(
        True,
        text="""
        Whether chat on an adapter uses the chat template in the adapter's own files. A process with limits on time,
        memory and output renders it. `false`: chat on such an adapter gets 400 `template_error` (422 on native routes)
        with the names of the adapter and of this setting; completions go on. An adapter whose template equals the
        base's has none of its own.
        """,
    )
