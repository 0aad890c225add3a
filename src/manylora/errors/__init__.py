"""Every failure manylora reports, as one tree, each with its row in each HTTP dialect.

    ManyloraError
    ├── RequestRejected            the request itself is wrong; nothing was done
    │   ├── InvalidJson  InvalidParameter (ToolsRefused)  ContextLengthExceeded
    │   ├── TemplateFailed (TemplateVariableMissing)
    │   ├── BodyTooLarge  UnsupportedMediaType  MethodNotAllowed  RouteNotFound
    │   ├── DeploymentNotFound  TaskUnsupported  RouteNotBuilt  InsufficientPermissions
    │   ├── HostNotAllowed  OriginNotAllowed  RequestTimedOut  HeadTooLarge  NotHttp
    │   ├── AdapterReferenceInvalid  InvalidApiKey  TenantMismatch  TenantSuspended
    │   ├── LimitExceeded  RequestRateExceeded  TokenRateExceeded  StreamLimitExceeded  QuotaExhausted
    │   └── ResourceNotFound  NameTaken  StateChanged  StorageLimitExceeded  SignupClosed
    ├── AdapterError               the adapter cannot serve this request
    │   ├── AdapterNotFound  AdapterAccessDenied  AdapterIncompatible  AdapterUnsupported
    │   ├── AdapterCorrupt  AdapterUnsafeFormat  AdapterTooLarge  AdapterMergeInvalid
    │   ├── AdapterSourceUnavailable  AdapterLoadTimeout  AdapterCapacity  AdapterStorageUnavailable
    │   └── AdapterTextChanged  AdapterInUse (operators only)
    ├── ServiceError               the server cannot serve now
    │   ├── Overloaded  QueueTimeout  Unavailable (RankLost)  ControlUnavailable  UsageUnrecorded
    │   └── StorageUnavailable  EngineFault (EmbeddingFailed, ClassificationFailed)  IncompleteGeneration
    └── StartupError               the process cannot start
        └── ConfigInvalid  DataTooNew  MemoryPlanImpossible  ModelUnsupported  ModelNotFound  NativeBuildFailed

A row is (status, type) for the native (LoRAX-style) routes and for the OpenAI routes, and one stable `code` for both.
No other room knows a status number.
"""

# Every error is imported from this room, whose files are one subject each.
from manylora.errors.adapters import AdapterAccessDenied as AdapterAccessDenied
from manylora.errors.adapters import AdapterCapacity as AdapterCapacity
from manylora.errors.adapters import AdapterCorrupt as AdapterCorrupt
from manylora.errors.adapters import AdapterError as AdapterError
from manylora.errors.adapters import AdapterIncompatible as AdapterIncompatible
from manylora.errors.adapters import AdapterInUse as AdapterInUse
from manylora.errors.adapters import AdapterLoadTimeout as AdapterLoadTimeout
from manylora.errors.adapters import AdapterMergeInvalid as AdapterMergeInvalid
from manylora.errors.adapters import AdapterNotFound as AdapterNotFound
from manylora.errors.adapters import AdapterSourceUnavailable as AdapterSourceUnavailable
from manylora.errors.adapters import AdapterStorageUnavailable as AdapterStorageUnavailable
from manylora.errors.adapters import AdapterTextChanged as AdapterTextChanged
from manylora.errors.adapters import AdapterTooLarge as AdapterTooLarge
from manylora.errors.adapters import AdapterUnsafeFormat as AdapterUnsafeFormat
from manylora.errors.adapters import AdapterUnsupported as AdapterUnsupported
from manylora.errors.requests import AdapterReferenceInvalid as AdapterReferenceInvalid
from manylora.errors.requests import BodyTooLarge as BodyTooLarge
from manylora.errors.requests import ContextLengthExceeded as ContextLengthExceeded
from manylora.errors.requests import DeploymentNotFound as DeploymentNotFound
from manylora.errors.requests import HeadTooLarge as HeadTooLarge
from manylora.errors.requests import HostNotAllowed as HostNotAllowed
from manylora.errors.requests import InsufficientPermissions as InsufficientPermissions
from manylora.errors.requests import InvalidApiKey as InvalidApiKey
from manylora.errors.requests import InvalidJson as InvalidJson
from manylora.errors.requests import InvalidParameter as InvalidParameter
from manylora.errors.requests import LimitExceeded as LimitExceeded
from manylora.errors.requests import MethodNotAllowed as MethodNotAllowed
from manylora.errors.requests import NameTaken as NameTaken
from manylora.errors.requests import NotHttp as NotHttp
from manylora.errors.requests import OriginNotAllowed as OriginNotAllowed
from manylora.errors.requests import QuotaExhausted as QuotaExhausted
from manylora.errors.requests import RequestRateExceeded as RequestRateExceeded
from manylora.errors.requests import RequestRejected as RequestRejected
from manylora.errors.requests import RequestTimedOut as RequestTimedOut
from manylora.errors.requests import ResourceNotFound as ResourceNotFound
from manylora.errors.requests import RouteNotBuilt as RouteNotBuilt
from manylora.errors.requests import RouteNotFound as RouteNotFound
from manylora.errors.requests import SignupClosed as SignupClosed
from manylora.errors.requests import StateChanged as StateChanged
from manylora.errors.requests import StorageLimitExceeded as StorageLimitExceeded
from manylora.errors.requests import StreamLimitExceeded as StreamLimitExceeded
from manylora.errors.requests import TaskUnsupported as TaskUnsupported
from manylora.errors.requests import TemplateFailed as TemplateFailed
from manylora.errors.requests import TemplateVariableMissing as TemplateVariableMissing
from manylora.errors.requests import TenantMismatch as TenantMismatch
from manylora.errors.requests import TenantSuspended as TenantSuspended
from manylora.errors.requests import TokenRateExceeded as TokenRateExceeded
from manylora.errors.requests import ToolsRefused as ToolsRefused
from manylora.errors.requests import UnsupportedMediaType as UnsupportedMediaType
from manylora.errors.row import ErrorRow as ErrorRow
from manylora.errors.row import ManyloraError as ManyloraError
from manylora.errors.service import ClassificationFailed as ClassificationFailed
from manylora.errors.service import ControlUnavailable as ControlUnavailable
from manylora.errors.service import EmbeddingFailed as EmbeddingFailed
from manylora.errors.service import EngineFault as EngineFault
from manylora.errors.service import IncompleteGeneration as IncompleteGeneration
from manylora.errors.service import Overloaded as Overloaded
from manylora.errors.service import QueueTimeout as QueueTimeout
from manylora.errors.service import RankLost as RankLost
from manylora.errors.service import ServiceError as ServiceError
from manylora.errors.service import StorageUnavailable as StorageUnavailable
from manylora.errors.service import Unavailable as Unavailable
from manylora.errors.service import UsageUnrecorded as UsageUnrecorded
from manylora.errors.startup import NEWER_REMEDY as NEWER_REMEDY
from manylora.errors.startup import ConfigInvalid as ConfigInvalid
from manylora.errors.startup import DataTooNew as DataTooNew
from manylora.errors.startup import MemoryPlanImpossible as MemoryPlanImpossible
from manylora.errors.startup import ModelNotFound as ModelNotFound
from manylora.errors.startup import ModelUnsupported as ModelUnsupported
from manylora.errors.startup import NativeBuildFailed as NativeBuildFailed
from manylora.errors.startup import StartupError as StartupError
