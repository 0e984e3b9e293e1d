//! Object stores that others wrote, started here: S3 by moto, GCS by gcp-storage-emulator, both Python packages.
//!
//! The Python that has them is `SAFELIGHT_TEST_PYTHON`, else `python3`; without them the tests say that they were skipped.
#![cfg(feature = "remote")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Folder, file_of};
use safelight_format::{Dtype, TensorView};
use safelight_store::remote::{CacheChoice, Problem, RemoteError, RemoteOptions, open};
use safelight_store::{Checkpoint, OpenOptions, StoreError};

/// Real signatures: after `reset-auth`, moto checks them against the keys it made.
const MOTO: &str = r#"
import json, logging, sys
logging.disable(logging.CRITICAL)
import boto3, requests
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://127.0.0.1:%d" % server.get_host_and_port()[1]
args = dict(endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
iam = boto3.client("iam", **args)
iam.create_user(UserName="reader")
key = iam.create_access_key(UserName="reader")["AccessKey"]
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps(policy))
s3 = boto3.client("s3", **args)
s3.create_bucket(Bucket="models")
for name in sys.argv[2:]:
    s3.put_object(Bucket="models", Key="a b/" + name, Body=open(sys.argv[1] + "/" + name, "rb").read())
requests.post(url + "/moto-api/reset-auth", data=b"0")
own = dict(args, aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
signed = boto3.client("s3", **own).generate_presigned_url(
    "get_object", Params={"Bucket": "models", "Key": "a b/" + sys.argv[2]})
print(json.dumps([url, key["AccessKeyId"], key["SecretAccessKey"], signed]), flush=True)
for line in sys.stdin:
    if line == "trust\n":
        # Without this, moto fails at signatures in queries.
        requests.post(url + "/moto-api/reset-auth", data=b"inf")
        print("trusted", flush=True)
        continue
    boto3.client("s3", **own).put_object(Bucket="models", Key="a b/" + sys.argv[2], Body=b"x" * 2000000)
    print("replaced", flush=True)
"#;

const GCS: &str = r#"
import json, logging, socket, sys, urllib.parse, urllib.request
logging.disable(logging.CRITICAL)
from gcp_storage_emulator.server import create_server
probe = socket.socket()
probe.bind(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
server = create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
server.start()
url = "http://127.0.0.1:%d" % port
for name in sys.argv[2:]:
    where = url + "/upload/storage/v1/b/models/o?uploadType=media&name=" + urllib.parse.quote("dir/" + name, safe="")
    body = open(sys.argv[1] + "/" + name, "rb").read()
    request = urllib.request.Request(where, data=body, method="POST")
    request.add_header("Content-Type", "application/octet-stream")
    urllib.request.urlopen(request).read()
print(json.dumps([url]), flush=True)
sys.stdin.read()
server.stop()
"#;

/// A Python process that ends when its input does.
struct Emulator {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Emulator {
    /// Starts `script` with files to host; `None`, said aloud, if this machine lacks `module`.
    fn start(module: &str, script: &str, folder: &Folder, files: &[&str]) -> Option<Emulator> {
        let python =
            std::env::var("SAFELIGHT_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let found = Command::new(&python)
            .args(["-c", &format!("import {module}")])
            .stderr(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            eprintln!(
                "SKIPPED: {python} has no module {module}; set SAFELIGHT_TEST_PYTHON to one that has it"
            );
            return None;
        }
        let mut child = Command::new(&python)
            .args(["-c", script])
            .arg(folder.path())
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python starts");
        let output = child.stdout.take().expect("its output");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Some(Emulator { child, lines })
    }

    fn line(&self) -> String {
        let waited = self.lines.recv_timeout(Duration::from_secs(120));
        waited.expect("the emulator answers")
    }

    fn strings(&self) -> Vec<String> {
        serde_json::from_str(&self.line()).expect("a JSON list")
    }

    /// Tells the script something; its answer.
    fn tell(&mut self, what: &str) -> String {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "{what}").expect("it listens");
        self.line()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn model(tensor_bytes: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..tensor_bytes * 3).map(|i| (i % 251) as u8).collect();
    let shape = [tensor_bytes as u64];
    let tensors: Vec<TensorView<'_>> = ["a", "b", "c"]
        .iter()
        .zip(bytes.chunks(tensor_bytes))
        .map(|(name, bytes)| TensorView {
            name,
            dtype: Dtype::U8,
            shape: &shape,
            bytes,
        })
        .collect();
    file_of(&tensors, None)
}

fn with(settings: &[(&str, &str)]) -> RemoteOptions {
    let settings = settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    RemoteOptions {
        part_bytes: 256 * 1024,
        settings: settings.collect(),
        ..RemoteOptions::default()
    }
}

fn same_tensors(checkpoint: &Checkpoint, file: &[u8]) {
    let file = Checkpoint::from_bytes("memory", file.to_vec()).unwrap();
    assert!(!file.is_empty());
    for name in file.names() {
        assert!(
            checkpoint.read_bytes(name).unwrap() == file.read_bytes(name).unwrap(),
            "{name}"
        );
    }
}

fn problem(error: &StoreError) -> &Problem {
    match error {
        StoreError::Io { error, .. } => {
            let inner = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<RemoteError>());
            &inner.expect("a remote error").problem
        }
        other => panic!("{other}"),
    }
}

#[test]
fn s3_by_moto() {
    let folder = Folder::new();
    let bytes = model(500_000);
    folder.write("m.safetensors", &bytes);
    let index =
        r#"{"weight_map": {"a": "m.safetensors", "b": "m.safetensors", "c": "m.safetensors"}}"#;
    folder.write("m.safetensors.index.json", index);
    let files = ["m.safetensors", "m.safetensors.index.json"];
    let Some(mut moto) = Emulator::start("moto.server, boto3", MOTO, &folder, &files) else {
        return;
    };
    let told = moto.strings();
    let [endpoint, key, secret, signed] = told.as_slice() else {
        panic!("{told:?}")
    };
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
    ];
    let plain = OpenOptions::default();
    let mut remote = with(&settings);
    remote.cache = CacheChoice::On {
        folder: folder.join("cache"),
        limit_bytes: 1 << 30,
    };
    for url in [
        "s3://models/a%20b/m.safetensors",
        "s3://models/a b/m.safetensors.index.json",
    ] {
        // From the server, then from the cache.
        for _ in 0..2 {
            same_tensors(&open(url, &plain, &remote).unwrap(), &bytes);
        }
    }
    let mut wrong = settings;
    wrong[4].1 = "not the secret";
    let error = open("s3://models/a%20b/m.safetensors", &plain, &with(&wrong)).unwrap_err();
    assert!(
        matches!(problem(&error), Problem::Refused(code) if code == "SignatureDoesNotMatch"),
        "{error}"
    );
    let error = open("s3://models/nothing", &plain, &with(&settings)).unwrap_err();
    assert_eq!(*problem(&error), Problem::NotFound, "{error}");

    assert_eq!(moto.tell("trust"), "trusted");
    // A signed URL needs no credentials, and keeps its secrets.
    let checkpoint = open(signed, &plain, &with(&[])).unwrap();
    assert!(
        !checkpoint.label().contains("Signature"),
        "{}",
        checkpoint.label()
    );
    same_tensors(&checkpoint, &bytes);

    let before = open("s3://models/a%20b/m.safetensors", &plain, &with(&settings)).unwrap();
    assert_eq!(moto.tell("replace"), "replaced");
    let error = before.read_bytes("c").unwrap_err();
    assert!(
        matches!(problem(&error), Problem::Changed { .. }),
        "{error}"
    );
}

/// This emulator has no ranges: what is seen here is that its whole answers are understood.
#[test]
fn gcs_by_gcp_storage_emulator() {
    let folder = Folder::new();
    let bytes = model(100_000);
    folder.write("m.safetensors", &bytes);
    let emulator = Emulator::start("gcp_storage_emulator", GCS, &folder, &["m.safetensors"]);
    let Some(emulator) = emulator else {
        return;
    };
    let told = emulator.strings();
    let account = format!(
        r#"{{"gcs_base_url": "{}", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}}"#,
        told[0]
    );
    let settings = [
        ("GOOGLE_SERVICE_ACCOUNT_KEY", account.as_str()),
        ("GOOGLE_ALLOW_HTTP", "true"),
    ];
    let remote = with(&settings);
    let plain = OpenOptions::default();
    same_tensors(
        &open("gs://models/dir/m.safetensors", &plain, &remote).unwrap(),
        &bytes,
    );
    let error = open("gs://models/nothing", &plain, &remote).unwrap_err();
    assert_eq!(*problem(&error), Problem::NotFound, "{error}");
}
