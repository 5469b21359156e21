//! Where a feed's files are, and an export's: written whole or not at all.
//!
//! A directory (a file beside the data, fsync, rename), a bucket (one put), or the standard output, which has no names. One
//! call is one request: pauses and retries belong to the caller. Credentials come from the SDK's chain, by reference only.

use crate::aws::Aws;
use crate::config::{self, FeedPlace};
use crate::failure::{Class, Failure, chain};
use crate::feed::output::Output;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ClientOptions, CredentialProvider, GetOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};

/// The longest that a request may take: a file of the largest size over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Credentials are renewed so long before they expire.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// Where a directory's files are while they are written; readers of data leave such a name out.
const STAGE: &str = "_tmp";
/// What somebody left there is older than any file that is being written.
const LEFT: Duration = Duration::from_hours(24);

/// Where a feed's files are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Place);

#[derive(Debug, Clone)]
enum Place {
    Stdout(Output),
    Directory(Arc<Directory>),
    Bucket { store: Arc<dyn ObjectStore>, prefix: String },
    Cloud(Arc<Cloud>),
}

/// A bucket of Google's or a container of Azure's, with the credentials that the environment names when it is first used.
#[derive(Debug)]
struct Cloud {
    place: FeedPlace,
    prefix: String,
    opened: OnceCell<Arc<dyn ObjectStore>>,
}

impl Cloud {
    fn at(place: &FeedPlace, prefix: &str) -> Place {
        let (place, prefix) = (place.clone(), with_slash(prefix));
        Place::Cloud(Arc::new(Self { place, prefix, opened: OnceCell::new() }))
    }

    async fn open(&self) -> Result<Arc<dyn ObjectStore>, Failure> {
        self.opened
            .get_or_try_init(async || self.made().map_err(|error| self.told(failure(error))))
            .await
            .cloned()
    }

    fn made(&self) -> object_store::Result<Arc<dyn ObjectStore>> {
        match &self.place {
            FeedPlace::Azure { account, container, endpoint, .. } => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_account(account)
                    .with_container_name(container)
                    .with_retry(once())
                    .with_client_options(options(endpoint.as_deref()));
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint.clone());
                }
                Ok(Arc::new(builder.build()?))
            }
            FeedPlace::Gcs { bucket, endpoint, .. } => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_retry(once())
                    .with_client_options(options(endpoint.as_deref()));
                if let Some(endpoint) = endpoint {
                    builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
                }
                Ok(Arc::new(builder.build()?))
            }
            FeedPlace::Stdout | FeedPlace::Files(_) | FeedPlace::S3 { .. } => {
                Err(object_store::Error::NotImplemented {
                    operation: "opening it".to_owned(),
                    implementer: "no cloud of this kind".to_owned(),
                })
            }
        }
    }

    /// A failure, with what is needed where that may be missing.
    fn told(&self, failure: Failure) -> Failure {
        let needs = match self.place {
            FeedPlace::Gcs { .. } => {
                "gs:// takes Google's default credentials: GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account"
            }
            _ => {
                "az:// takes AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and \
                 AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE, or the machine's identity"
            }
        };
        Failure::new(failure.class, failure.code.clone(), format!("{}; {needs}", failure.message))
    }
}

fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn options(endpoint: Option<&str>) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(Duration::from_secs(5))
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http:")))
}

fn with_slash(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

/// A directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// It is written to, and made when it is first used.
    own: bool,
    opened: OnceCell<Arc<LocalFileSystem>>,
}

impl Directory {
    async fn open(&self) -> Result<Arc<LocalFileSystem>, Failure> {
        let open = async || {
            let failed = |error: std::io::Error| {
                let why = format!("{}: {error}", self.path.display());
                Failure::new(Class::NotFound, "Directory", why)
            };
            if self.own {
                tokio::fs::create_dir_all(&self.path).await.map_err(failed)?;
                clean(&self.path.join(STAGE)).await.map_err(failed)?;
            }
            let store = LocalFileSystem::new_with_prefix(&self.path).map_err(failure)?.with_fsync(true);
            Ok(Arc::new(store))
        };
        self.opened.get_or_try_init(open).await.map(Arc::clone)
    }

    /// Writes a file beside the data, and moves it there when it is whole.
    async fn put(&self, to: &Path, bytes: PutPayload) -> Result<(), Failure> {
        let store = self.open().await?;
        let staged = Path::from(format!("{STAGE}/{:032x}", rand::random::<u128>()));
        store.put(&staged, bytes).await.map_err(failure)?;
        let moved = store.rename(&staged, to).await.map_err(failure);
        if moved.is_err() {
            // It is no data, and in the way of nobody.
            let _left = store.delete(&staged).await;
        }
        moved
    }
}

/// Removes what was left by those who died while they wrote.
async fn clean(stage: &std::path::Path) -> std::io::Result<()> {
    let mut entries = match tokio::fs::read_dir(stage).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    while let Some(entry) = entries.next_entry().await? {
        // Somebody else may be about to remove or move it.
        let Ok(about) = entry.metadata().await else { continue };
        if about.modified()?.elapsed().unwrap_or_default() > LEFT {
            let _gone = tokio::fs::remove_file(entry.path()).await;
        }
    }
    Ok(())
}

/// What is done at a feed's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Writing a file.
    Write,
    /// Reading one, and seeing that there is none.
    Read,
    /// Listing files.
    List,
    /// Deleting what was tried.
    Delete,
}

/// All of them.
pub const DEEDS: [Deed; 4] = [Deed::Write, Deed::Read, Deed::List, Deed::Delete];

/// A file as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How many bytes it has.
    pub size: u64,
    /// What tells it from another one of the same name.
    tag: Option<String>,
}

impl Store {
    /// A feed's place. Sends nothing, and makes no directory yet.
    ///
    /// # Errors
    /// What makes no sense of it.
    pub async fn open(feed: &config::Feed, aws: &Aws) -> Result<Self, Failure> {
        Self::at(&feed.place, aws, true).await
    }

    /// A place that is there, to read from.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn existing(place: &FeedPlace, aws: &Aws) -> Result<Self, Failure> {
        let store = Self::at(place, aws, false).await?;
        store.objects().await?;
        Ok(store)
    }

    async fn at(place: &FeedPlace, aws: &Aws, own: bool) -> Result<Self, Failure> {
        match place {
            FeedPlace::Stdout => Ok(Self(Place::Stdout(Output::stdout()))),
            FeedPlace::Files(path) => {
                let directory = Directory { path: path.clone(), own, opened: OnceCell::new() };
                Ok(Self(Place::Directory(Arc::new(directory))))
            }
            FeedPlace::S3 { bucket, prefix, access } => {
                let mut builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(&access.region)
                    .with_retry(once())
                    // What is refused of several is told in words only, and not all that speak S3 can it.
                    .with_disable_bulk_delete(true)
                    .with_client_options(options(access.endpoint.as_deref()));
                if let Some(endpoint) = &access.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(provider) = Box::pin(aws.credentials(access)).await {
                    let chain = Chain { provider, last: Mutex::default() };
                    builder = builder.with_credentials(Arc::new(chain));
                }
                let store = builder.build().map_err(failure)?;
                Ok(Self(Place::Bucket { store: Arc::new(store), prefix: with_slash(prefix) }))
            }
            place @ (FeedPlace::Gcs { prefix, .. } | FeedPlace::Azure { prefix, .. }) => {
                Ok(Self(Cloud::at(place, prefix)))
            }
        }
    }

    /// Whether it is the standard output, which takes lines and has no names.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        matches!(self.0, Place::Stdout(_))
    }

    /// Writes a whole file over whatever has its name; on the standard output, the bytes.
    ///
    /// # Errors
    /// The failure; the file is there or it is not, and writing it again is harmless.
    pub async fn put(&self, name: &str, bytes: PutPayload) -> Result<(), Failure> {
        match &self.0 {
            Place::Stdout(out) => out
                .write(bytes)
                .await
                .map_err(|error| Failure::new(Class::Unknown, "Stdout", error.to_string())),
            Place::Directory(directory) => directory.put(&Path::from(name), bytes).await,
            Place::Bucket { store, prefix } => {
                store.put(&path(prefix, name), bytes).await.map(drop).map_err(failure)
            }
            Place::Cloud(cloud) => {
                let put = cloud.open().await?.put(&path(&cloud.prefix, name), bytes).await;
                put.map(drop).map_err(|error| cloud.told(failure(error)))
            }
        }
    }

    /// The files' store, with what all names begin with; `None` on the standard output.
    async fn objects(&self) -> Result<Option<(Arc<dyn ObjectStore>, &str)>, Failure> {
        match &self.0 {
            Place::Stdout(_) => Ok(None),
            Place::Directory(directory) => Ok(Some((directory.open().await?, ""))),
            Place::Bucket { store, prefix } => Ok(Some((Arc::clone(store), prefix))),
            Place::Cloud(cloud) => Ok(Some((cloud.open().await?, &cloud.prefix))),
        }
    }

    /// A whole file; `None` when there is none of this name.
    ///
    /// # Errors
    /// The failure of the request.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let Some((store, prefix)) = self.objects().await? else { return Ok(None) };
        let found = match store.get(&path(prefix, name)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failure(error)),
        };
        found.bytes().await.map(|bytes| Some(bytes.to_vec())).map_err(failure)
    }

    /// Which file has a name now; `None` when there is none.
    ///
    /// # Errors
    /// The failure of the request.
    pub async fn look(&self, name: &str) -> Result<Option<Seen>, Failure> {
        let Some((store, prefix)) = self.objects().await? else { return Ok(None) };
        match store.head(&path(prefix, name)).await {
            Ok(found) => Ok(Some(Seen { size: found.size, tag: found.e_tag })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    /// Some bytes of a file that was seen, which must not be beyond its end.
    ///
    /// # Errors
    /// The failure of the request; of the class [`Class::Condition`] when another file has the name by now, where the place
    /// can tell.
    pub async fn part(&self, name: &str, seen: &Seen, bytes: Range<u64>) -> Result<Vec<u8>, Failure> {
        let Some((store, prefix)) = self.objects().await? else { return Ok(Vec::new()) };
        let options = GetOptions::new().with_range(Some(bytes)).with_if_match(seen.tag.clone());
        let found = store.get_opts(&path(prefix, name), options).await.map_err(failure)?;
        found.bytes().await.map(|bytes| bytes.to_vec()).map_err(failure)
    }

    /// Tries everything that is done at a feed's place, and leaves nothing behind; `id` keeps two at the same time apart.
    /// What came of each, in the order of [`DEEDS`].
    ///
    /// # Errors
    /// Why nothing could be tried.
    pub async fn probe(&self, id: &str) -> Result<[Result<(), Failure>; DEEDS.len()], Failure> {
        let Some((store, prefix)) = self.objects().await? else { return Ok([const { Ok(()) }; DEEDS.len()]) };
        let name = format!("_probe/{id}");
        let written = self.put(&name, PutPayload::new()).await;
        let listed = store.list(Some(&path(prefix, "_probe"))).take(1).try_collect::<Vec<_>>().await;
        let read = self.get(&name).await;
        // A directory says so when there is nothing to delete, because nothing could be written.
        let deleted = match store.delete(&path(prefix, &name)).await.map_err(failure) {
            Err(failure) if failure.class == Class::NotFound => Ok(()),
            deleted => deleted,
        };
        Ok([written, read.map(drop), listed.map(drop).map_err(failure), deleted])
    }
}

fn path(prefix: &str, name: &str) -> Path {
    Path::from(format!("{prefix}{name}"))
}

fn failure(error: object_store::Error) -> Failure {
    use object_store::Error as E;
    let (class, code) = match &error {
        E::NotFound { .. } => (Class::NotFound, "NotFound"),
        E::Precondition { .. } => (Class::Condition, "Changed"),
        E::PermissionDenied { .. } => (Class::Denied, "PermissionDenied"),
        E::Unauthenticated { .. } => (Class::Credentials, "Unauthenticated"),
        // Of a listing, nothing but the words says it.
        E::Generic { .. } if error.to_string().contains("status code: 403") => {
            (Class::Denied, "PermissionDenied")
        }
        _ => (Class::Unknown, "Store"),
    };
    Failure::new(class, code, chain(&error))
}

/// The SDK's credentials, kept until shortly before they expire.
#[derive(Debug)]
struct Chain {
    provider: SharedCredentialsProvider,
    last: Mutex<Option<Credentials>>,
}

impl Chain {
    async fn credentials(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut last = self.last.lock().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "credentials expire by the machine's clock, as the SDK's own do"
        )]
        let soon = std::time::SystemTime::now() + RENEW_BEFORE;
        if last.as_ref().is_none_or(|held| held.expiry().is_some_and(|expiry| expiry < soon)) {
            let found = self.provider.provide_credentials().await;
            *last = Some(found.map_err(|error| object_store::Error::Unauthenticated {
                path: String::new(),
                source: Box::new(error),
            })?);
        }
        let held = last.as_ref();
        let text = |of: fn(&Credentials) -> &str| held.map(of).unwrap_or_default().to_owned();
        Ok(Arc::new(AwsCredential {
            key_id: text(Credentials::access_key_id),
            secret_key: text(Credentials::secret_access_key),
            token: held.and_then(|held| held.session_token().map(str::to_owned)),
        }))
    }
}

impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> BoxFuture<'b, object_store::Result<Arc<AwsCredential>>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.credentials())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::Base;
    use crate::config::{Compression, FeedFormat, Images, Partition};
    use std::time::SystemTime;

    async fn at(directory: &std::path::Path) -> Store {
        let feed = config::Feed {
            name: "f".to_owned(),
            place: FeedPlace::Files(directory.to_owned()),
            format: FeedFormat::Json,
            images: Images::New,
            compression: Compression::None,
            partition: Partition::None,
            roll_bytes: 1,
            roll_age: Duration::from_secs(1),
            columns: Vec::new(),
        };
        let base = Base { credentials: None, http: None, request_timeout: None };
        Store::open(&feed, &Aws::new(base)).await.unwrap()
    }

    fn names(directory: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn nothing_but_whole_files_is_ever_among_the_data() {
        let directory = tempfile::tempdir().unwrap();
        let store = at(directory.path()).await;
        assert_eq!(store.get("data/x").await.unwrap(), None);
        let large = PutPayload::from(vec![7_u8; 64 << 20]);
        let put = store.put("data/x", large.clone());
        tokio::pin!(put);
        let mut looks = 0;
        loop {
            tokio::select! {
                biased;
                done = &mut put => { done.unwrap(); break }
                () = tokio::task::yield_now() => {
                    looks += 1;
                    let seen = names(&directory.path().join("data"));
                    assert!(seen.iter().all(|name| name == "x"), "{seen:?}");
                }
            }
        }
        assert!(looks > 1, "it was looked at while it was written");
        assert_eq!(store.get("data/x").await.unwrap().map(|bytes| bytes.len()), Some(64 << 20));
        assert_eq!(names(&directory.path().join(STAGE)), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_was_left_by_the_dead_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let stage = directory.path().join(STAGE);
        std::fs::create_dir(&stage).unwrap();
        for (name, age) in [("old#1", LEFT + Duration::from_secs(60)), ("new#1", Duration::ZERO)] {
            let file = std::fs::File::create(stage.join(name)).unwrap();
            #[expect(clippy::disallowed_methods, reason = "files have the machine's time")]
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        at(directory.path()).await.put("x", PutPayload::new()).await.unwrap();
        assert_eq!(names(&stage), ["new#1"]);
    }
}
