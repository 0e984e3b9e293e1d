//! A source written as a safetensors file.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use safelight_store::{StreamWriter, Writer};

use crate::error::ConvertError;
use crate::source::{Note, Source, check_all};

/// How a source is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Order, sync and so on.
    pub save: safelight_store::SaveOptions,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many tensors.
    pub tensor_count: u64,
    /// Their bytes, without the header.
    pub tensor_bytes: u64,
    /// The source's notes: what was not handed on as it was.
    pub notes: Vec<Note>,
}

impl Report {
    /// All of a source, as it is.
    fn of(source: &dyn Source) -> Report {
        Report {
            tensor_count: source.contents().tensor_count() as u64,
            tensor_bytes: source.contents().all_bytes(),
            notes: source.notes().to_vec(),
        }
    }
}

/// As many tensors as are read and written at the same time: more would only queue for the disk.
const THREADS_MAX: usize = 4;

/// Below this many bytes a second thread costs more than it saves.
const BYTES_FOR_THREADS: u64 = 8 * 1024 * 1024;

/// Writes all tensors of a source into one safetensors file, atomically: `path` has the old content or the new one.
///
/// `progress` hears how many bytes of how many are done, and stops the writing by [`ControlFlow::Break`].
/// Memory: a few pieces. The file's bytes do not depend on the number of threads.
///
/// # Errors
/// [`ConvertError::Cancelled`], what the source says, or what the disk says; nothing is left behind then.
pub fn write_safetensors(
    source: &dyn Source,
    path: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report, ConvertError> {
    check_all(source)?;
    let metadata = Some(source.metadata()).filter(|metadata| !metadata.is_empty());
    let (specs, opaque) = source.contents().to_specs();
    let writer = Writer::create_with_opaque(path, &specs, &opaque, metadata, &options.save)?;
    let all = source.contents().all_bytes();
    let job = Job {
        source,
        writer: &writer,
        order: writer.file_order(),
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    let available = thread::available_parallelism().map_or(1, usize::from);
    let threads = match all {
        0..BYTES_FOR_THREADS => 1,
        _ => available.clamp(2, THREADS_MAX), // one reads while another waits for the disk
    };
    run(&job, threads, all, progress)?;
    writer.finish()?;
    Ok(Report::of(source))
}

/// Writes the same bytes as [`write_safetensors`] into a pipe, a socket, a buffer: one after the other. `label` stands for
/// the output in messages.
///
/// Memory: a few pieces. What was written before an error is the beginning of a file, which every reader refuses.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_to(
    source: &dyn Source,
    label: &str,
    out: &mut dyn Write,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report, ConvertError> {
    check_all(source)?;
    let metadata = Some(source.metadata()).filter(|metadata| !metadata.is_empty());
    let (specs, opaque) = source.contents().to_specs();
    let save = &options.save;
    let mut writer = StreamWriter::with_opaque(label, out, &specs, &opaque, metadata, save)?;
    let all = source.contents().all_bytes();
    let mut done = 0;
    while let Some(index) = writer.next_tensor() {
        source.read(index, &mut |piece| {
            writer.write(index, piece)?;
            done += piece.len() as u64;
            match progress(done, all) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ConvertError::Cancelled),
            }
        })?;
        if writer.next_tensor() == Some(index) {
            break; // the source gave less than it said, which `finish` tells
        }
    }
    writer.finish()?;
    Ok(Report::of(source))
}

/// Tensors that are still to be written, and by whom.
struct Job<'a> {
    source: &'a dyn Source,
    writer: &'a Writer,
    order: &'a [usize],
    /// The position in `order` that is taken next.
    next: AtomicUsize,
    stop: AtomicBool,
}

/// Lets the threads work while this one tells of their progress.
fn run(
    job: &Job<'_>,
    threads: usize,
    all: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), ConvertError> {
    let (sender, pieces) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            scope.spawn(move || {
                if let Err(error) = job.work(&sender) {
                    job.stop.store(true, Ordering::Relaxed);
                    let _ = sender.send(Err(error)); // this thread listens until all are done
                }
            });
        }
        drop(sender);
        let (mut done, mut failed) = (0, None);
        for piece in pieces {
            match piece {
                Ok(bytes) => {
                    done += bytes;
                    if failed.is_none() && progress(done, all).is_break() {
                        job.stop.store(true, Ordering::Relaxed);
                        failed = Some(ConvertError::Cancelled);
                    }
                }
                // The others were only told to stop.
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

impl Job<'_> {
    /// Takes tensors until there are none left.
    fn work(&self, done: &Sender<Result<u64, ConvertError>>) -> Result<(), ConvertError> {
        while let Some(&index) = self.order.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let mut offset = 0;
            self.source.read(index, &mut |piece| {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ConvertError::Cancelled);
                }
                self.writer.write_at(index, offset, piece)?;
                offset += piece.len() as u64;
                let _ = done.send(Ok(piece.len() as u64)); // as above
                Ok(())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safelight_format::{Dtype, TensorSpec};

    use super::*;
    use crate::source::Contents;

    /// Tensors of bytes that tell their place; one of them may fail.
    struct Made {
        contents: Contents,
        failing: Option<usize>,
    }

    impl Made {
        fn new(sizes: &[u64], failing: Option<usize>) -> Made {
            let spec = |(index, &size): (usize, &u64)| TensorSpec {
                name: format!("t{index}"),
                dtype: Dtype::U8,
                shape: vec![size],
            };
            Made {
                contents: Contents {
                    label: "made".into(),
                    tensors: sizes.iter().enumerate().map(spec).collect(),
                    metadata: BTreeMap::from([("made".into(), "here".into())]),
                    ..Contents::default()
                },
                failing,
            }
        }
    }

    fn byte(index: usize, offset: u64) -> u8 {
        (index as u64 * 31 + offset % 251) as u8
    }

    impl Source for Made {
        fn contents(&self) -> &Contents {
            &self.contents
        }

        fn read(
            &self,
            index: usize,
            out: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
        ) -> Result<(), ConvertError> {
            let size = self.tensors()[index].shape[0];
            let bytes: Vec<u8> = (0..size).map(|offset| byte(index, offset)).collect();
            for (count, piece) in bytes.chunks(1_000_000).enumerate() {
                if self.failing == Some(index) && count == 1 {
                    return Err(ConvertError::malformed("made", "test", "t", "it fails"));
                }
                out(piece)?;
            }
            Ok(())
        }
    }

    #[test]
    fn many_threads_write_what_one_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let sizes = [5_000_000, 0, 3, 4_000_001, 1_000_000];
        let made = Made::new(&sizes, None);
        let mut heard = (0, 0);
        let options = WriteOptions::default();
        let report = write_safetensors(&made, &path, &options, &mut |done, all| {
            assert!(done > heard.0);
            heard = (done, all);
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!(
            (report.tensor_count, report.tensor_bytes),
            (5, sizes.iter().sum())
        );
        assert_eq!(heard, (report.tensor_bytes, report.tensor_bytes));
        let checkpoint = safelight_store::Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.metadata().unwrap()["made"], "here");
        for (index, &size) in sizes.iter().enumerate() {
            let bytes = checkpoint.read_bytes(&format!("t{index}")).unwrap();
            assert_eq!(bytes.len() as u64, size);
            assert!((0..size).all(|offset| bytes[offset as usize] == byte(index, offset)));
        }
    }

    #[test]
    fn an_output_gets_the_bytes_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let made = Made::new(&[5_000_000, 0, 3], None);
        let options = WriteOptions::default();
        let (mut out, mut heard) = (Vec::new(), 0);
        let go = &mut |_, _| ControlFlow::Continue(());
        let report = write_safetensors(&made, &path, &options, go).unwrap();
        let streamed = write_safetensors_to(&made, "out", &mut out, &options, &mut |done, _| {
            heard = done;
            ControlFlow::Continue(())
        });
        assert_eq!(streamed.unwrap(), report);
        assert_eq!(heard, report.tensor_bytes);
        assert!(out == std::fs::read(&path).unwrap());
        let stop = &mut |_, _| ControlFlow::Break(());
        let stopped = write_safetensors_to(&made, "out", &mut out, &options, stop).unwrap_err();
        assert!(matches!(stopped, ConvertError::Cancelled), "{stopped}");
    }

    #[test]
    fn nothing_is_left_of_what_failed_or_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, b"old").unwrap();
        let options = WriteOptions::default();
        let sizes = [5_000_000, 5_000_000];
        let failing = Made::new(&sizes, Some(1));
        let go = &mut |_, _| ControlFlow::Continue(());
        let failed = write_safetensors(&failing, &path, &options, go).unwrap_err();
        assert!(failed.to_string().contains("it fails"), "{failed}");
        let made = Made::new(&sizes, None);
        let stop = &mut |_, _| ControlFlow::Break(());
        let stopped = write_safetensors(&made, &path, &options, stop).unwrap_err();
        assert!(matches!(stopped, ConvertError::Cancelled), "{stopped}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
