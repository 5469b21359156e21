//! The standard output, written by a thread of its own: a reader that stalls holds up nobody but who writes to it.
//!
//! What is given to it is written whole and in turn, also when whoever gave it does not wait for that.

use object_store::PutPayload;
use std::io::{Error, Result, Write};
use std::sync::LazyLock;
use tokio::sync::{mpsc, oneshot};

/// Something to write, and whom to tell.
type Job = (PutPayload, oneshot::Sender<Result<()>>);

/// A writer. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Output(mpsc::Sender<Job>);

static STDOUT: LazyLock<Output> = LazyLock::new(|| Output::to(std::io::stdout()));

impl Output {
    /// The process's standard output.
    #[must_use]
    pub fn stdout() -> Self {
        STDOUT.clone()
    }

    /// A thread that writes to `out` for as long as there are handles.
    #[must_use]
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let (sender, mut jobs) = mpsc::channel::<Job>(1);
        let work = move || {
            while let Some((bytes, tell)) = jobs.blocking_recv() {
                let written =
                    bytes.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush());
                // Nobody waits any more.
                let _gone = tell.send(written);
            }
        };
        // Without a thread every write says that there is none.
        let _thread = std::thread::Builder::new().name("output".to_owned()).spawn(work);
        Self(sender)
    }

    /// Writes bytes, and waits until they are out.
    ///
    /// # Errors
    /// Why they are not, or not all of them.
    pub async fn write(&self, bytes: PutPayload) -> Result<()> {
        let gone = || Error::other("there is no thread to write");
        let (tell, told) = oneshot::channel();
        self.0.send((bytes, tell)).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

/// Waits until nobody reads the standard output any more; for ever where that cannot be told, as of a file.
#[cfg(unix)]
pub async fn hung_up() {
    use std::os::fd::AsFd;
    use tokio::io::Interest;
    use tokio::net::unix::pipe::Sender;
    // Nothing is written through it, so it need not be a pipe in the mode for that.
    let out = std::io::stdout().as_fd().try_clone_to_owned().and_then(Sender::from_owned_fd_unchecked);
    match out {
        Ok(out) => drop(out.ready(Interest::ERROR).await),
        Err(_) => std::future::pending().await,
    }
}

/// Waits for ever: it cannot be told.
#[cfg(not(unix))]
pub async fn hung_up() {
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as blocking;

    /// Takes nothing until it is told to.
    struct Stalled(blocking::Receiver<()>, blocking::Sender<Vec<u8>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.recv().unwrap();
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_stalls_holds_up_who_writes_and_nobody_else() {
        let ((go, wait), (out, seen)) = (blocking::channel(), blocking::channel());
        let output = Output::to(Stalled(wait, out));
        let mut first = Box::pin(output.write(PutPayload::from_static(b"one")));
        let second = output.write(PutPayload::from_static(b"two"));
        tokio::select! {
            biased;
            _ = &mut first => panic!("nothing was taken"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        go.send(()).unwrap();
        go.send(()).unwrap();
        second.await.unwrap();
        assert_eq!([seen.recv().unwrap(), seen.recv().unwrap()], [b"one".to_vec(), b"two".to_vec()]);
    }
}
