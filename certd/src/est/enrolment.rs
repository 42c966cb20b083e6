//! Enrolments: a certificate for a caller's request, from an EST server to the store.
//!
//! Once begun, an enrolment runs to its end, whatever becomes of its caller, who is answered before it stops listening; a caller
//! that asks for the same again joins it. What has been overtaken is not stored: by a newer enrolment, by whoever else stored the
//! certificate, or by its deletion.

mod error;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aziot_http::Retry;
use aziot_log::{RequestId, chain, fields};
use aziot_pki::{
    certificate::Chain,
    key,
    renewal::{Engine, Failure, Held, NotAvailable},
    request::Request,
    tls::ClientIdentity,
};
use aziot_turns::Turns;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    client::Enrolled,
    identity::{Identity, Wish, is_same_subject},
    pair,
    settings::{Missing, Target},
};
use crate::{issuance, settings::Settings};
pub(crate) use error::Error;

/// Enrolments under way at once, those that wait for a server's decision counted in.
const MOST: usize = 64;

/// How long an enrolment goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long callers are kept waiting: they listen for 30 s.
    pub(crate) caller: Duration,
    /// How often, and for how long, a server that is away or busy is tried.
    pub(crate) retry: Retry,
    /// How long a server may put off its decision.
    pub(crate) decision: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let caller = Duration::from_secs(27);
        Self {
            caller,
            retry: Retry { retries: 2, attempt: caller, total: caller },
            decision: Duration::from_secs(24 * 3600),
        }
    }
}

type Outcome = Result<String, Arc<Error>>;

/// All enrolments of this process. Clones share them.
#[derive(Clone)]
pub(crate) struct Enrolments(Arc<Shared>);

struct Shared {
    engine: Engine,
    /// Those in force now.
    current: Arc<ArcSwap<Settings>>,
    /// Who stores certificates, here and elsewhere.
    stores: Arc<Turns>,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    running: Mutex<Register>,
    patience: Patience,
}

#[derive(Default)]
struct Register {
    last: u64,
    by_id: HashMap<String, Vec<Running>>,
}

struct Running {
    number: u64,
    request: Request,
    settings: Arc<Settings>,
    outcome: Arc<watch::Sender<Option<Outcome>>>,
    overtaken: CancellationToken,
}

impl Running {
    fn give_up_if_nobody_waits(&self) {
        if self.outcome.receiver_count() == 0 {
            self.overtaken.cancel();
        }
    }
}

impl Enrolments {
    /// `current` are the settings in force, `stores` the turns of those who store certificates.
    pub(crate) fn new(engine: Engine, current: Arc<ArcSwap<Settings>>, stores: Arc<Turns>, patience: Patience) -> Self {
        Self(Arc::new(Shared {
            engine,
            current,
            stores,
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(MOST)),
            running: Mutex::default(),
            patience,
        }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Has the certificate `id` issued on `request` and stored; returns what was stored.
    pub(crate) async fn enroll(&self, settings: Arc<Settings>, id: &str, request: Request) -> Outcome {
        let limit = self.0.patience.caller;
        let mut outcome = self.begin_or_join(settings, id, request).map_err(Arc::new)?;
        match timeout(limit, outcome.wait_for(Option::is_some)).await {
            Err(_) => Err(Arc::new(Error::Slow { limit })),
            Ok(ended) => {
                let ended = ended.ok().and_then(|ended| ended.clone());
                ended.unwrap_or_else(|| Err(Arc::new(Error::CutOff)))
            }
        }
    }

    /// The certificate is changed otherwise: what has begun before is not to undo that. For those who have its turn.
    pub(crate) fn overtake(&self, id: &str) {
        self.0.register().by_id.get(id).into_iter().flatten().for_each(|running| running.overtaken.cancel());
    }

    /// Lets what is under way come to its end, for at most `limit`. What is cut off can be repaired.
    pub(crate) async fn finish(&self, limit: Duration) {
        self.0.tasks.close();
        if timeout(limit, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("{} enrolments are cut off", self.0.tasks.len());
        }
    }

    fn begin_or_join(
        &self,
        settings: Arc<Settings>,
        id: &str,
        request: Request,
    ) -> Result<watch::Receiver<Option<Outcome>>, Error> {
        let mut register = self.0.register();
        let others = register.by_id.get(id).map(Vec::as_slice).unwrap_or_default();
        let same = |running: &&Running| {
            running.request.asks_the_same_as(&request)
                && Arc::ptr_eq(&running.settings, &settings)
                && !running.overtaken.is_cancelled()
        };
        if let Some(running) = others.iter().rev().find(same) {
            return Ok(running.outcome.subscribe());
        }
        // Who asks for something else does not want any more what nobody waits for.
        others.iter().for_each(Running::give_up_if_nobody_waits);
        let permit = Arc::clone(&self.0.places).try_acquire_owned().map_err(|_| Error::Busy)?;
        register.last += 1;
        let number = register.last;
        let (sender, receiver) = watch::channel(None);
        let (outcome, overtaken) = (Arc::new(sender), CancellationToken::new());
        register.by_id.entry(id.to_owned()).or_default().push(Running {
            number,
            request: request.clone(),
            settings: Arc::clone(&settings),
            outcome: Arc::clone(&outcome),
            overtaken: overtaken.clone(),
        });
        let place = Place { shared: Arc::clone(&self.0), id: id.to_owned(), number };
        let enrolment = Enrolment { place, settings, request, overtaken };
        let work = async move {
            let _permit = permit;
            let ended = enrolment.run().await.map_err(Arc::new);
            if let Err(error) = &ended
                && outcome.receiver_count() == 0
            {
                let id = &enrolment.place.id;
                tracing::warn!({ fields::CERTIFICATE_ID } = id, "gave up an enrolment: {}", chain(&**error));
            }
            outcome.send_replace(Some(ended));
        };
        match RequestId::current() {
            Some(request_id) => drop(self.0.tasks.spawn(request_id.scope(work))),
            None => drop(self.0.tasks.spawn(work)),
        }
        Ok(receiver)
    }
}

impl Shared {
    fn register(&self) -> MutexGuard<'_, Register> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An enrolment's entry in the register, until it ends, however it ends.
struct Place {
    shared: Arc<Shared>,
    id: String,
    number: u64,
}

impl Place {
    /// Older ones would put back what is older.
    fn overtake_older(&self) {
        for running in self.shared.register().by_id.get(&self.id).into_iter().flatten() {
            if running.number < self.number {
                running.overtaken.cancel();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut register = self.shared.register();
        if let Some(running) = register.by_id.get_mut(&self.id) {
            running.retain(|running| running.number != self.number);
            if running.is_empty() {
                register.by_id.remove(&self.id);
            }
        }
    }
}

struct Enrolment {
    place: Place,
    settings: Arc<Settings>,
    request: Request,
    overtaken: CancellationToken,
}

impl Enrolment {
    async fn run(&self) -> Result<String, Error> {
        let pem = self.issued().await?.to_pem().map_err(Error::Encoding)?;
        let id = &self.place.id;
        let turn = self.place.shared.stores.take(id).await;
        if self.overtaken.is_cancelled() {
            return Err(Error::Overtaken);
        }
        self.place.overtake_older();
        let stored = self.settings.store.run({
            let (id, pem) = (id.clone(), pem.clone());
            move |store| {
                let _turn = turn;
                pair::forget_note(store, &id)?;
                store.write(&id, &pem)
            }
        });
        stored.await.map_err(Error::Store)?;
        self.place.shared.engine.look_again(id);
        tracing::info!({ fields::CERTIFICATE_ID } = id, "a certificate was issued over EST");
        Ok(pem)
    }

    /// Asks until the server issues, refuses, or is away for too long.
    async fn issued(&self) -> Result<Chain, Error> {
        let Patience { retry, decision, .. } = self.place.shared.patience;
        let asked_since = Instant::now();
        // Since the server last had something to say.
        let (mut heard, mut failures) = (asked_since, 0);
        loop {
            if self.overtaken.is_cancelled() {
                return Err(Error::Overtaken);
            }
            let not_yet = match self.attempt().await {
                Ok(Enrolled::Issued(chain)) => return Ok(chain),
                Ok(Enrolled::NotYet(pause)) => Ok(pause),
                Err(error) => error.not_yet().ok_or(error),
            };
            let pause = match not_yet {
                Ok(pause) => {
                    // Never before the server's time.
                    let pause = pause.mul_f64(1.0 + fastrand::f64() * 0.1);
                    if asked_since.elapsed() + pause > decision {
                        return Err(Error::Undecided { limit: decision });
                    }
                    tracing::info!(
                        { fields::CERTIFICATE_ID } = self.place.id,
                        { fields::DELAY_MILLISECONDS } = milliseconds(pause),
                        "the EST server has not decided yet, will be asked again"
                    );
                    (heard, failures) = (Instant::now() + pause, 0);
                    pause
                }
                Err(error) => {
                    failures += 1;
                    let pause =
                        error.passing().and_then(|server| retry.pause(failures, heard.elapsed(), server.retry_after()));
                    let Some(pause) = pause else { return Err(error) };
                    tracing::warn!(
                        { fields::CERTIFICATE_ID } = self.place.id,
                        { fields::ATTEMPT } = failures,
                        { fields::DELAY_MILLISECONDS } = milliseconds(pause),
                        { fields::ERROR } = %chain(&error),
                        "an enrolment failed, will be repeated"
                    );
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.overtaken.cancelled() => return Err(Error::Overtaken),
            }
        }
    }

    async fn attempt(&self) -> Result<Enrolled, Error> {
        let plan = &self.settings.est;
        let target = plan.target(&self.place.id)?;
        // Until the end of the exchange nobody moves the key that it signs with.
        let (_held, identity) = match &target.identity {
            Some(pair) => {
                let identity = plan.identity(pair).ok_or(Missing::Credentials)?;
                let (held, client) = self.hold(identity, target).await?;
                (Some(held), Some(client))
            }
            None => (None, None),
        };
        let client = plan.servers.client(&target.access, identity).await?;
        let replaces = target.access.reenroll && self.replaces().await;
        client.enroll(&self.request, replaces).await.map_err(|error| Error::Server(Box::new(error)))
    }

    async fn hold(&self, identity: &Arc<Identity>, target: &Target) -> Result<(Held, Arc<ClientIdentity>), Error> {
        let engine = &self.place.shared.engine;
        let ids = identity.ids();
        let mut is_doubted = false;
        loop {
            let held = match engine.hold(&ids.cert, &ids.pk).await {
                // Not looked after, or not there any more.
                Err(NotAvailable::Unknown { .. } | NotAvailable::Unreadable { source: Failure::Fatal(_), .. }) => {
                    self.obtain(identity, target).await?;
                    engine.hold(&ids.cert, &ids.pk).await
                }
                held => held,
            };
            let held = held.map_err(Error::NotAvailable)?;
            match identity.client_identity(held.chain()).await {
                Ok(client) => return Ok((held, client)),
                // The key was lost or replaced since the engine last looked, which it mends if anybody can.
                Err(error) if error.is_of_key() && !is_doubted => {
                    drop(held);
                    tracing::warn!({ fields::CERTIFICATE_ID } = ids.cert, "{}; looking into it", chain(&error));
                    engine.doubt(&ids.cert, &ids.pk);
                    is_doubted = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Obtains the identity if it is not there, and has it looked after.
    async fn obtain(&self, identity: &Arc<Identity>, target: &Target) -> Result<(), Error> {
        let engine = &self.place.shared.engine;
        let ids = identity.ids();
        let obtaining = async {
            if !identity.is_there().await? {
                identity.bootstrap(&self.wish(target)?).await?;
            }
            Ok::<_, Error>(())
        };
        engine.alone(&ids.cert, &ids.pk, obtaining).await.map_err(Error::NotAvailable)??;
        if !engine.add(Arc::clone(identity) as _, self.settings.est.generation()) {
            // There are other settings by now, and whether they have the identity is for them to say.
            let current = self.place.shared.current.load_full();
            if let Some(identity) = current.est.identity(ids) {
                engine.add(Arc::clone(identity) as _, current.est.generation());
            }
        }
        Ok(())
    }

    /// An identity is called like the certificate that it is first needed for.
    fn wish(&self, target: &Target) -> Result<Wish, Error> {
        let options = self.settings.issuance.certificates.get(&self.place.id);
        let subject = options.map(issuance::subject).transpose().map_err(Error::Subject)?.flatten();
        Ok(Wish { access: target.access.clone(), subject: subject.unwrap_or_else(|| self.request.subject().clone()) })
    }

    /// Whether there is a certificate of this subject already.
    async fn replaces(&self) -> bool {
        let id = self.place.id.clone();
        let base = id.strip_suffix(key::NEXT_SUFFIX).map(str::to_owned);
        for id in base.into_iter().chain([id]) {
            let text = self.settings.store.run(move |store| store.read(&id)).await;
            let chain = text.ok().flatten().and_then(|text| Chain::from_pem(&text).ok());
            if chain.is_some_and(|chain| is_same_subject(&chain, self.request.subject())) {
                return true;
            }
        }
        false
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
