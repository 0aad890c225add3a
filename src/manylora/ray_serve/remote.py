"""The application on a Ray cluster that runs already."""

from manylora.config.environment import set_variables
from manylora.config.settings import Config
from manylora.errors import StartupError
from manylora.ray_serve.local import node_resources, refuse_too_few
from manylora.ray_serve.names import APPLICATION, CLUSTER_VARIABLES, NAMESPACE


def deploy(config: Config, address: str, factory: str) -> list[str]:
    """Deploy the application to the cluster at an address, and return the names of its deployments.

    Serve's proxies must have been configured with the cluster (`deploy/serve.yaml`). The token of the cluster is in
    the environment or in the file of the user, as Ray looks for it.
    Raises `StartupError` if no cluster answers, or if it has fewer processors or cards than the settings ask for.
    """
    set_variables(CLUSTER_VARIABLES)
    import ray
    from ray import serve

    from manylora.ray_serve.application import application, as_public

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise StartupError(f"no Ray cluster answers at {address}: {str(error).partition(chr(10))[0]}") from error
    try:
        refuse_too_few(config, ray.cluster_resources(), node_resources())
        serve.run(application(as_public(config), factory), name=APPLICATION, route_prefix="/")
        return sorted(serve.status().applications[APPLICATION].deployments)
    finally:
        ray.shutdown()
