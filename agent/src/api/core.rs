//! The way from the API thread to the core thread: closures, of which few wait.

use std::sync::Arc;

use crossbeam_channel::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::server::Refused;
use crate::node::Node;

/// Calls that may wait for the core thread. One more is refused with 503; what follows from a call that was taken waits for room.
pub const CALLS_MAX: usize = 256;

/// Something to be done on the core thread.
pub type Call = Box<dyn FnOnce(&mut Node) + Send>;

/// The way to the core thread.
#[derive(Clone)]
pub struct Core {
    calls: Sender<Call>,
    waker: Arc<mio::Waker>,
    /// Places in the channel; a call gives its own back as it is begun.
    room: Arc<Semaphore>,
}

impl Core {
    /// A way through this channel of [`CALLS_MAX`] places, waking that loop.
    pub fn new(calls: Sender<Call>, waker: Arc<mio::Waker>) -> Self {
        Self { calls, waker, room: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// Runs a closure on the core thread and returns what it returns.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let room = self.room.clone().try_acquire_owned();
        let room = room.map_err(|_| {
            Refused(503, format!("the node is busy: {CALLS_MAX} calls wait; try again"))
        })?;
        self.ask(room, run).await
    }

    /// As [`Core::call`], for what nobody would ask for a second time: it waits for room.
    pub(super) async fn insist<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let room = self.room.clone().acquire_owned().await;
        self.ask(room.map_err(|_| stopping())?, run).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        room: OwnedSemaphorePermit,
        run: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (sender, receiver) = oneshot::channel();
        let call: Call = Box::new(move |node| {
            drop(room);
            // Who asked may have gone away.
            let _ = sender.send(run(node));
        });
        // Who has a place finds the channel with room: it is only full when the loop has ended.
        self.calls.try_send(call).map_err(|_| stopping())?;
        self.waker.wake().map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())
    }
}

fn stopping() -> Refused {
    Refused(503, "the agent is stopping".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core thread that takes nothing: calls beyond the bound are refused, and what is insisted on waits for its place.
    #[tokio::test]
    async fn a_call_too_many_is_refused_and_what_is_insisted_on_waits() {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(1)).unwrap();
        let (sender, calls) = crossbeam_channel::bounded(CALLS_MAX);
        let core = Core::new(sender, Arc::new(waker));
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..CALLS_MAX {
            let core = core.clone();
            asked.spawn(async move { core.call(|_| ()).await.is_ok() });
        }
        while calls.len() < CALLS_MAX {
            tokio::task::yield_now().await;
        }
        let Err(Refused(status, reason)) = core.call(|_| ()).await else { panic!("taken") };
        assert_eq!(status, 503);
        assert!(reason.contains("256 calls wait"), "{reason}");
        let insisting = tokio::spawn({
            let core = core.clone();
            async move { core.insist(|_| ()).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert_eq!(calls.len(), CALLS_MAX);
        drop(calls.try_recv().unwrap());
        while calls.len() < CALLS_MAX {
            tokio::task::yield_now().await;
        }
        assert!(!insisting.is_finished(), "it has its place and waits for its answer");
        while calls.try_recv().is_ok() {}
        assert!(!insisting.await.unwrap(), "it was thrown away, not done");
        while let Some(answered) = asked.join_next().await {
            assert!(!answered.unwrap());
        }
    }
}
