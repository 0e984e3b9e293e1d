//! Which classes and functions a pickle may name, and which are known to run code.
//!
//! Nothing here is ever called. *Allowed* means that this crate knows what the value would be and can stand in for it;
//! *inert* that it is plain data which real checkpoints hold beside their tensors and which is dropped. All else is refused by
//! name. The list is exact: a dotted name (`OrderedDict.__init__`) is never on it.

use std::collections::HashSet;
use std::sync::LazyLock;

/// What is known of a global.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Part of how tensors and plain values are written.
    Allowed,
    /// A class of plain data that checkpoints hold beside tensors.
    Inert,
    /// Nothing is known of it.
    Unknown,
    /// It runs code, opens files or reaches the network with arguments of the pickle's choosing.
    Dangerous,
}

/// What is known of `module.name`.
pub(crate) fn standing(module: &str, name: &str) -> Standing {
    let module = modern(module);
    if has(ALLOWED, module, name) || is_torch_type(module, name) || is_numpy_type(module, name) {
        Standing::Allowed
    } else if has(INERT, module, name) || is_plain_module(module, name) {
        Standing::Inert
    } else if is_dangerous(module, name) {
        Standing::Dangerous
    } else {
        Standing::Unknown
    }
}

/// Whether it is what plain pickles write for a storage: a call with all bytes of a file that `torch.save` wrote. The call is as
/// harmless as these bytes are, so whoever lets it through has to look into them.
pub(crate) fn is_nested_load(module: &str, name: &str) -> bool {
    (module, name) == ("torch.storage", "_load_from_bytes")
}

/// Python 2's name of a module in Python 3, as `pickle` maps it (CPython, `Lib/_compat_pickle.py`).
fn modern(module: &str) -> &str {
    match module {
        "__builtin__" | "exceptions" => "builtins",
        "copy_reg" => "copyreg",
        "cPickle" => "pickle",
        "commands" => "subprocess",
        "UserDict" | "UserList" | "UserString" => "collections",
        other => other,
    }
}

fn has(list: &[(&str, &str)], module: &str, name: &str) -> bool {
    list.iter()
        .any(|(listed, names)| *listed == module && among(names, name))
}

/// Whether `name` is one of the words of a list.
fn among(names: &str, name: &str) -> bool {
    names.split(' ').any(|listed| listed == name)
}

/// Modules, each with the names that stand for tensors or plain values.
const ALLOWED: &[(&str, &str)] = &[
    (
        "builtins",
        "dict list set frozenset tuple int long float complex str unicode bool bytes bytearray slice \
         range xrange object Ellipsis NotImplemented",
    ),
    ("collections", "OrderedDict defaultdict Counter deque"),
    ("copyreg", "_reconstructor"),
    ("_codecs", "encode"),
    (
        "torch._utils",
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter \
         _rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor \
         _rebuild_sparse_csr_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor \
         _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor",
    ),
    (
        "torch.jit._pickle",
        "build_intlist build_doublelist build_boollist build_tensorlist restore_type_tag",
    ),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.tensor", "_rebuild_from_type_v2 _rebuild_from_type"),
    ("torch.nn.parameter", "Parameter Buffer"),
    ("torch.serialization", "_get_layout"),
    (
        "torch.storage",
        "UntypedStorage TypedStorage _UntypedStorage _TypedStorage _load_from_bytes",
    ),
    (
        "torch",
        "Tensor Size device dtype layout UntypedStorage TypedStorage",
    ),
    ("numpy.core.multiarray", "_reconstruct scalar"),
    ("numpy._core.multiarray", "_reconstruct scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray dtype"),
];

/// Plain data beside the tensors of real checkpoints.
const INERT: &[(&str, &str)] = &[
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("typing", "Any"),
    ("datetime", "datetime date time timedelta timezone"),
    ("decimal", "Decimal"),
    (
        "pathlib",
        "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    ),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata Metadata"),
    (
        "omegaconf.nodes",
        "AnyNode StringNode IntegerNode FloatNode BooleanNode",
    ),
    (
        "pytorch_lightning.callbacks.model_checkpoint",
        "ModelCheckpoint",
    ),
    (
        "pytorch_lightning.callbacks.early_stopping",
        "EarlyStopping",
    ),
    (
        "pytorch_lightning.callbacks.lr_monitor",
        "LearningRateMonitor",
    ),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    (
        "lightning.pytorch.callbacks.model_checkpoint",
        "ModelCheckpoint",
    ),
    (
        "lightning.pytorch.callbacks.early_stopping",
        "EarlyStopping",
    ),
    ("lightning.pytorch.utilities.parsing", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("lightning.fabric.utilities.data", "AttributeDict"),
    ("torch.optim.adam", "Adam"),
    ("torch.optim.adamw", "AdamW"),
    ("torch.optim.sgd", "SGD"),
    (
        "torch.optim.lr_scheduler",
        "LambdaLR StepLR CosineAnnealingLR OneCycleLR",
    ),
];

/// Storages (`FloatStorage`), tensors (`FloatTensor`) and number types (`float16`) of torch.
fn is_torch_type(module: &str, name: &str) -> bool {
    const KINDS: &str = "Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble QUInt8 QInt8 \
    QInt32 QUInt4x2 QUInt2x4";
    const DTYPES: &str = "float float16 float32 float64 double half bfloat16 uint8 uint16 uint32 uint64 int8 int16 \
        int32 int64 short int long bool complex32 complex64 complex128 chalf cfloat cdouble \
        float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 \
        quint8 qint8 qint32 quint4x2 quint2x4 per_tensor_affine per_channel_affine \
        per_channel_affine_float_qparams per_tensor_symmetric per_channel_symmetric strided \
        sparse_coo sparse_csr preserve_format contiguous_format channels_last";
    match module {
        "torch" => {
            let kind = name
                .strip_suffix("Storage")
                .or_else(|| name.strip_suffix("Tensor"));
            kind.is_some_and(|kind| among(KINDS, kind)) || among(DTYPES, name)
        }
        "torch.cuda" => name
            .strip_suffix("Storage")
            .or_else(|| name.strip_suffix("Tensor"))
            .is_some_and(|kind| among(KINDS, kind)),
        _ => false,
    }
}

/// Number types of numpy: `numpy.float32`, `numpy.dtypes.Float32DType`.
fn is_numpy_type(module: &str, name: &str) -> bool {
    const TYPES: &str = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 \
        longdouble complex64 complex128 intp str_ bytes_ longlong ulonglong";
    const DTYPES: &str = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64 Complex64 \
        Complex128 Str Bytes";
    match module {
        "numpy" => among(TYPES, name),
        "numpy.dtypes" => name
            .strip_suffix("DType")
            .is_some_and(|dtype| among(DTYPES, dtype)),
        _ => false,
    }
}

/// Classes of `torch.nn.modules`: a whole model that was saved is a tree of them, with its tensors in dicts. And TorchScript's
/// names, which no Python module has.
fn is_plain_module(module: &str, name: &str) -> bool {
    if module == "__torch__" || module.starts_with("__torch__.") {
        return !name.contains('.');
    }
    const FILES: &str = "activation batchnorm container conv dropout flatten instancenorm linear module normalization \
    padding pixelshuffle pooling rnn sparse transformer upsampling loss";
    let plain = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric());
    plain
        && module
            .strip_prefix("torch.nn.modules.")
            .is_some_and(|file| among(FILES, file))
}

/// Modules of which every function is taken for dangerous, with all modules below them.
const DANGEROUS_MODULES: &str = "os posix posixpath nt ntpath subprocess sys socket ssl shutil importlib imp runpy code codeop \
    codecs webbrowser ctypes _ctypes cffi multiprocessing asyncio pickle _pickle _pickle_compat \
    cloudpickle dill joblib marshal shelve pip _pip ensurepip venv pkgutil pkg_resources setuptools \
    distutils site zipimport zipfile tarfile logging uuid _osx_support _aix_support _pyrepl imaplib \
    smtplib ftplib poplib nntplib telnetlib http httplib urllib urllib2 urllib3 requests httpx \
    aiohttp xmlrpc socketserver bdb pdb cmd idlelib timeit profile cProfile trace doctest unittest \
    pty tty signal platform tempfile glob fileinput io _io operator _operator functools _functools \
    itertools inspect ast dis gc builtins threading _thread sched atexit sqlite3 _sqlite3 dbm mmap \
    fcntl pydoc pyclbr py_compile compileall modulefinder lib2to3 test turtle tkinter cgi cgitb \
    wsgiref pipes popen2 crypt linecache tracemalloc tokenize tabnanny rlcompleter readline mailcap \
    sysconfig torch.hub torch.jit torch._dynamo torch._inductor torch.utils torch.serialization \
    torch.distributed torch.multiprocessing torch.onnx torch.package torch.fx torch.library \
    torch.ops torch.classes torch.testing torch._C torch.storage torch.cuda numpy.f2py numpy.testing \
    numpy.distutils numpy.ctypeslib numpy.lib IPython ipykernel jupyter_client yaml jinja2 mako \
    fabric paramiko invoke pexpect psutil sh plumbum bpy win32api winreg _winreg msvcrt winsound \
    _winapi pywintypes types tensorflow.io keras.utils";

/// Single functions that are dangerous in modules that are not, as a whole.
const DANGEROUS_NAMES: &[(&str, &str)] = &[
    (
        "torch",
        "load save compile hub import_ir_module from_file jit ops classes",
    ),
    (
        "numpy",
        "load loads loadtxt save savetxt savez fromfile genfromtxt memmap fromregex DataSource \
         vectorize frompyfunc apply_along_axis apply_over_axes piecewise fromfunction",
    ),
    ("collections", "namedtuple"),
    (
        "copyreg",
        "__newobj__ __newobj_ex__ pickle constructor add_extension",
    ),
];

fn is_dangerous(module: &str, name: &str) -> bool {
    static MODULES: LazyLock<HashSet<&str>> =
        LazyLock::new(|| DANGEROUS_MODULES.split_ascii_whitespace().collect());
    // The module itself and every one that it lies in.
    let ends = module.match_indices('.').map(|(end, _)| end);
    let is_within = ends
        .chain([module.len()])
        .any(|end| MODULES.contains(&module[..end]));
    let reached = name.split('.').any(|part| part.starts_with("__"));
    reached
        || is_within
        || has(DANGEROUS_NAMES, module, name)
        || has(
            DANGEROUS_NAMES,
            module,
            name.split('.').next().unwrap_or(name),
        )
        || name.contains("_load_from_bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standings() {
        use Standing::{Allowed, Dangerous, Inert, Unknown};
        for (module, name, expected) in [
            ("collections", "OrderedDict", Allowed),
            ("collections", "OrderedDict.__init__", Dangerous),
            ("torch", "FloatStorage", Allowed),
            ("torch", "float8_e4m3fn", Allowed),
            ("torch.cuda", "HalfStorage", Allowed),
            ("torch.cuda", "init", Dangerous),
            ("torch", "load", Dangerous),
            ("torch.storage", "_load_from_bytes", Allowed),
            ("torch", "storage._load_from_bytes", Dangerous),
            ("torch._utils", "_load_from_bytes", Dangerous),
            ("torch.storage", "UntypedStorage", Allowed),
            ("torch.serialization", "load", Dangerous),
            ("torch.serialization", "_get_layout", Allowed),
            ("torch.nn.modules.conv", "Conv2d", Inert),
            ("torch.nn.modules.conv", "conv2d", Unknown),
            ("torch.nn.modules.conv", "Conv2d.forward", Unknown),
            ("torch.nn.modules.utils", "Sequence", Unknown),
            (
                "pytorch_lightning.callbacks.model_checkpoint",
                "ModelCheckpoint",
                Inert,
            ),
            ("builtins", "eval", Dangerous),
            ("__builtin__", "eval", Dangerous),
            ("__builtin__", "set", Allowed),
            ("builtins", "getattr", Dangerous),
            ("os", "system", Dangerous),
            ("os.path", "join", Dangerous),
            ("osx", "system", Unknown),
            ("commands", "getoutput", Dangerous),
            ("pip._internal.cli.main", "main", Dangerous),
            ("pkgutil", "resolve_name", Dangerous),
            ("types", "SimpleNamespace", Inert),
            ("types", "CodeType", Dangerous),
            ("my_model", "Net", Unknown),
            ("numpy", "float32", Allowed),
            ("numpy.dtypes", "Float32DType", Allowed),
            ("numpy.testing._private.utils", "runstring", Dangerous),
            ("", "", Unknown),
        ] {
            assert_eq!(standing(module, name), expected, "{module}.{name}");
        }
    }
}
