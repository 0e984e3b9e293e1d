//! Threads that make requests, a bounded number of them, so that callers may be anywhere: also inside another runtime.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Runtime};

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// Starts threads as they are needed, up to a number; they end with the pool.
pub(crate) struct Pool {
    jobs: Sender<Job>,
    waiting: Arc<Mutex<Receiver<Job>>>,
    threads: Mutex<usize>,
    threads_max: usize,
}

impl Pool {
    pub(crate) fn new(threads_max: usize) -> Pool {
        let (jobs, waiting) = channel();
        Pool {
            jobs,
            waiting: Arc::new(Mutex::new(waiting)),
            threads: Mutex::new(0),
            threads_max: threads_max.max(1),
        }
    }

    /// Does `job` on a thread of the pool, soon.
    ///
    /// # Errors
    /// If there is no thread yet and none can be started.
    pub(crate) fn submit(&self, job: impl FnOnce(&Runtime) + Send + 'static) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if *threads < self.threads_max {
            match self.start() {
                Ok(()) => *threads += 1,
                Err(error) if *threads == 0 => return Err(error),
                Err(_) => {}
            }
        }
        // The receiver lives as long as the pool.
        self.jobs
            .send(Box::new(job))
            .map_err(|_| io::Error::other("the request threads have ended"))
    }

    fn start(&self) -> io::Result<()> {
        let waiting = Arc::clone(&self.waiting);
        // `object_store` sleeps by tokio's clock; nothing else of it is used.
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let run = move || {
            loop {
                let job = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv();
                match job {
                    // A job that panics has told its waiters by being dropped; the thread goes on.
                    Ok(job) => drop(catch_unwind(AssertUnwindSafe(|| job(&runtime)))),
                    Err(_) => return,
                }
            }
        };
        thread::Builder::new()
            .name("safelight-remote".to_owned())
            .spawn(run)
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_at_the_same_time_and_threads_are_bounded() {
        let pool = Pool::new(3);
        let (done, all) = channel();
        let barrier = Arc::new(std::sync::Barrier::new(3));
        for number in 0..9 {
            let (done, barrier) = (done.clone(), Arc::clone(&barrier));
            let job = move |_: &Runtime| {
                // Three at a time get past this, or none.
                barrier.wait();
                let _ = done.send((number, thread::current().id()));
            };
            pool.submit(job).expect("a thread");
        }
        let results: Vec<_> = (0..9).map(|_| all.recv().expect("an answer")).collect();
        let threads: std::collections::HashSet<_> = results.iter().map(|(_, id)| *id).collect();
        assert_eq!(threads.len(), 3);
    }
}
