//! Devices for every way of provisioning, each made by a super-config and `config apply` of `aziotctl` or, with modules, of `iotedge`, with a
//! cloud that knows them.
//!
//! The cloud is also the EST server here. What needs an EST server of its own, with faults of its own, is in [`est`](crate::est).

mod super_config;

use std::{
    fs,
    ops::{Deref, DerefMut},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer, x509::X509};

use crate::{
    Daemon, World, calls,
    device::{self, MANUAL_DEVICE_ID, REGISTRATION_ID, write_private},
    est, hex, openssl as program,
    token::Token,
    tpm::SoftwareTpm,
};

/// How a device gets its identity, and what it proves itself with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By hand, with a connection string.
    ConnectionString,
    /// By hand, with a symmetric key.
    ManualKey,
    /// By hand, with a certificate.
    ManualCertificate(Certificate),
    /// By hand, with a symmetric key, behind a parent device.
    Nested,
    /// DPS, individual enrolment with a symmetric key.
    DpsKey,
    /// DPS, enrolment group with a symmetric key; the device has its own key of that.
    DpsGroupKey,
    /// DPS, with a certificate: an individual enrolment by its thumbprint where it is preloaded, else an enrolment group by its CA.
    DpsCertificate(Certificate),
    /// DPS, with the TPM.
    DpsTpm,
    /// None: local identities only.
    None,
}

/// A device's certificate: where it comes from and where its key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// It and its key are files on the device.
    Preloaded,
    /// It is a file on the device, its key is on a token.
    PreloadedOnToken,
    /// The device's own CA issues it for a key in the key service.
    LocalCa,
    /// The same, with all keys on a token.
    LocalCaOnToken,
    /// An EST server issues it for a key in the key service.
    Est,
    /// The same, with all keys on a token.
    EstOnToken,
}

impl Certificate {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Preloaded, Self::PreloadedOnToken, Self::LocalCa, Self::LocalCaOnToken, Self::Est, Self::EstOnToken];

    fn is_on_token(self) -> bool {
        matches!(self, Self::PreloadedOnToken | Self::LocalCaOnToken | Self::EstOnToken)
    }
}

impl Kind {
    /// The device's name in the cloud; `None` if it has none.
    #[must_use]
    pub fn device_id(self) -> Option<&'static str> {
        match self {
            Self::ConnectionString | Self::ManualKey | Self::ManualCertificate(_) | Self::Nested => {
                Some(MANUAL_DEVICE_ID)
            }
            Self::DpsKey | Self::DpsGroupKey | Self::DpsCertificate(_) | Self::DpsTpm => Some(REGISTRATION_ID),
            Self::None => None,
        }
    }

    /// What `auth` is in the device's identity.
    #[must_use]
    pub fn authentication(self) -> &'static str {
        match self {
            Self::ManualCertificate(_) | Self::DpsCertificate(_) => "x509",
            Self::DpsTpm => "tpm",
            Self::ConnectionString | Self::ManualKey | Self::Nested | Self::DpsKey | Self::DpsGroupKey | Self::None => {
                "sas"
            }
        }
    }

    fn certificate(self) -> Option<Certificate> {
        match self {
            Self::ManualCertificate(certificate) | Self::DpsCertificate(certificate) => Some(certificate),
            _ => None,
        }
    }
}

/// A kind of device, and what a test wants to be different about it.
#[derive(Clone, Debug)]
pub struct Setup {
    kind: Kind,
    /// `auto_renew` of an issued certificate, a table of TOML.
    auto_renew: Option<&'static str>,
    lifetime_seconds: u32,
    backdate_seconds: u32,
    cloud_arguments: Vec<String>,
    payload: Option<&'static str>,
    modules: Option<Modules>,
}

/// What a super-config says about modules.
#[derive(Clone, Debug)]
struct Modules {
    keys: String,
    tables: String,
}

impl Setup {
    /// A device of this kind without anything special.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            auto_renew: None,
            lifetime_seconds: 3600,
            backdate_seconds: 0,
            cloud_arguments: Vec::new(),
            payload: None,
            modules: None,
        }
    }

    /// The device's certificate is renewed as `policy` says, a table of TOML. The EST server's certificates last so many seconds, of which so
    /// many are over when they come.
    #[must_use]
    pub fn renewed(self, policy: &'static str, lifetime_seconds: u32, backdate_seconds: u32) -> Self {
        Self { auto_renew: Some(policy), lifetime_seconds, backdate_seconds, ..self }
    }

    /// The cloud's program gets this argument.
    #[must_use]
    pub fn cloud_argument(mut self, argument: &str) -> Self {
        self.cloud_arguments.push(argument.to_owned());
        self
    }

    /// DPS is sent this JSON.
    #[must_use]
    pub fn payload(self, json: &'static str) -> Self {
        Self { payload: Some(json), ..self }
    }

    /// The device has modules, about which its super-config says these keys at its top and these tables at its end. [`Daemon::Edge`] does not
    /// start with the others.
    #[must_use]
    pub fn modules(self, keys: impl Into<String>, tables: impl Into<String>) -> Self {
        Self { modules: Some(Modules { keys: keys.into(), tables: tables.into() }), ..self }
    }

    /// The cloud runs and knows the device, whose super-config has been applied. None of its daemons runs.
    pub fn configure(&self) -> Result<Provisioned> {
        let mut device = Provisioned { world: World::empty()?, kind: self.kind, token: None, tpm: None };
        if self.kind.certificate().is_some_and(Certificate::is_on_token) {
            device.token = Some(Token::make(&device.path("token"))?);
        }
        if self.kind == Kind::DpsTpm {
            device.tpm = Some(SoftwareTpm::start(&device.path("tpm"))?);
        }
        if self.modules.is_some() {
            device.have_modules();
        }
        let proof = device.proof()?;
        let super_config = self.start_cloud(&mut device, &proof)?;
        device.apply(&super_config)?;
        Ok(device)
    }

    /// The same, and all its daemons run.
    pub fn start(&self) -> Result<Provisioned> {
        let mut device = self.configure()?;
        device.start_all()?;
        Ok(device)
    }

    /// Returns the super-config that fits the cloud.
    fn start_cloud(&self, device: &mut Provisioned, proof: &Proof) -> Result<String> {
        let est = format!(
            "lifetime_seconds = {}\nbackdate_seconds = {}\n\n[users]\n{} = {:?}\n",
            self.lifetime_seconds,
            self.backdate_seconds,
            est::USER,
            est::PASSWORD
        );
        write_private(&device.path("cloud/est.toml"), est)?;
        device.enrol(&super_config::enrolment(self.kind, proof))?;
        let mut arguments: Vec<&str> = self.cloud_arguments.iter().map(String::as_str).collect();
        if self.kind == Kind::Nested {
            arguments.extend(["--gateway-name", super_config::GATEWAY]);
        }
        device.add_cloud_arguments(&arguments);
        device.start_cloud()?;
        super_config::super_config(self, device, proof)
    }
}

const DEVICE_CERTIFICATE: &str = "var/secrets/device.pem";

/// What a device has to prove itself with.
struct Proof {
    /// A symmetric key in base64, or the URI of a private key; empty where there is neither.
    of_the_device: String,
    /// Line of the enrolment.
    of_the_cloud: String,
}

/// A device, its cloud, and its token or TPM if it has one.
pub struct Provisioned {
    // Dropped first: processes end before their files go.
    world: World,
    kind: Kind,
    token: Option<Token>,
    /// The TPM of a device that has one.
    pub tpm: Option<SoftwareTpm>,
}

impl Provisioned {
    /// How it gets its identity.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Starts a daemon with what it needs of this device's hardware.
    pub fn start(&mut self, daemon: Daemon) -> Result<()> {
        let environment = self.token.as_ref().filter(|_| daemon == Daemon::Keys).map(Token::environment);
        self.world.start_with(daemon, move |command| {
            if let Some((name, value)) = &environment {
                command.env(name, value);
            }
        })
    }

    /// The daemons that this kind of device needs, in the order of their start.
    pub fn daemons(&self) -> impl DoubleEndedIterator<Item = Daemon> + use<> {
        self.tpm.is_some().then_some(Daemon::Tpm).into_iter().chain(Daemon::ALL)
    }

    /// Starts them all.
    pub fn start_all(&mut self) -> Result<()> {
        self.daemons().try_for_each(|daemon| self.start(daemon))
    }

    /// Stops all daemons and starts them anew.
    pub fn restart_all(&mut self) -> Result<()> {
        self.world.stop_daemons()?;
        self.start_all()
    }

    /// Kills all daemons, as a power cut would, and starts them anew.
    pub fn kill_all(&mut self) -> Result<()> {
        for daemon in self.daemons().rev() {
            self.world.kill(daemon)?;
        }
        self.start_all()
    }

    /// `spec` of the device's identity, which it must have.
    pub fn identity(&self) -> Result<serde_json::Value> {
        let identity = calls::device_identity(&self.world)?.expect(200)?.json()?;
        ensure!(identity["type"] == "aziot", "{identity}");
        Ok(identity["spec"].clone())
    }

    fn proof(&self) -> Result<Proof> {
        let nothing = |of_the_cloud: String| Proof { of_the_device: String::new(), of_the_cloud };
        let key = device::random_key()?;
        let proof = match self.kind {
            Kind::None => nothing(String::new()),
            Kind::ConnectionString | Kind::ManualKey | Kind::Nested | Kind::DpsKey => {
                let key = STANDARD.encode(key);
                Proof { of_the_cloud: format!("symmetric_key = \"{key}\""), of_the_device: key }
            }
            Kind::DpsGroupKey => {
                let mut signer = Signer::new(MessageDigest::sha256(), PKey::hmac(&key)?.as_ref())?;
                let own = signer.sign_oneshot_to_vec(REGISTRATION_ID.as_bytes())?;
                let of_the_cloud = format!("symmetric_key = \"{}\"", STANDARD.encode(key));
                Proof { of_the_device: STANDARD.encode(own), of_the_cloud }
            }
            Kind::DpsTpm => nothing("endorsement_key = \"any\"".to_owned()),
            Kind::ManualCertificate(certificate) | Kind::DpsCertificate(certificate) => match certificate {
                Certificate::Preloaded | Certificate::PreloadedOnToken => self.preload()?,
                Certificate::LocalCa | Certificate::LocalCaOnToken => {
                    self.make_local_ca()?;
                    nothing(format!("certificate_authority = \"{}\"", self.local_ca().display()))
                }
                Certificate::Est | Certificate::EstOnToken => {
                    nothing("certificate_authority = \"est/issuing-ca.pem\"".to_owned())
                }
            },
        };
        Ok(proof)
    }

    /// Makes a key and a certificate that the device brings along.
    fn preload(&self) -> Result<Proof> {
        let (key, certificate) = (self.path("var/secrets/device.key.pem"), self.path(DEVICE_CERTIFICATE));
        let name = self.kind.device_id().context("a device with a certificate has a name")?;
        program::make_client_certificate(&key, &certificate, name)?;
        let of_the_cloud = format!("certificate_thumbprint = \"{}\"", thumbprint(&fs::read(&certificate)?)?);
        let of_the_device = match &self.token {
            None => format!("file://{}", key.display()),
            Some(token) => {
                let uri = token.import(&key, "device-key")?;
                // From now on it is nowhere but on the token.
                fs::remove_file(&key)?;
                uri
            }
        };
        Ok(Proof { of_the_device, of_the_cloud })
    }
}

/// SHA-256 over a certificate (PEM), lower-case hex: by what a cloud knows it.
pub fn thumbprint(pem: &[u8]) -> Result<String> {
    let certificate = X509::from_pem(pem).context("this is no certificate")?;
    Ok(hex::encode(&certificate.digest(MessageDigest::sha256())?))
}

impl Deref for Provisioned {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Provisioned {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}
