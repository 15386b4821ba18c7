//! A record in an object store: S3 and what speaks like it, or Azure Blob.
//!
//! Objects are replaced on the condition that their ETag is the expected one (`If-Match`), and made
//! on the condition that there is none (`If-None-Match: *`). An ETag may be a digest of the content,
//! so that the same content again is the same version: records carry a nonce.
//!
//! Requests are not repeated by the library: the repetition of a write that had succeeded would be
//! told that somebody else was quicker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::Error;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMode;
use object_store::PutPayload;
use object_store::RetryConfig;
use object_store::UpdateVersion;
use object_store::aws::AmazonS3Builder;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path;

use super::record::RECORD_BYTES_MAX;
use super::store::StoreError;
use super::store::Tag;
use super::store::WitnessStore;
use super::store::Written;

/// How long a request may take, and its connection of that.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A record in an object store.
#[derive(Debug, Clone)]
pub struct Object {
    store: Arc<dyn ObjectStore>,
    url: String,
    folder: Path,
    path: Path,
}

/// The settings of an object store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the object store cannot be used: {0}; give an address like s3://BUCKET/FOLDER or \
     az://CONTAINER/FOLDER"
)]
pub struct BadAddress(String);

impl From<Error> for BadAddress {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

fn http() -> ClientOptions {
    ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT)
}

fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn s3(url: &str, options: &BTreeMap<String, String>) -> Result<Arc<dyn ObjectStore>, BadAddress> {
    let plain = options.get("aws_endpoint").is_some_and(|end| end.starts_with("http://"));
    let http = http().with_allow_http(plain);
    let mut builder = AmazonS3Builder::new().with_url(url);
    for (key, value) in options {
        let known: AmazonS3ConfigKey = key.parse()?;
        builder = builder.with_config(known, value);
    }
    Ok(Arc::new(builder.with_client_options(http).with_retry(once()).build()?))
}

fn azure(
    url: &str,
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn ObjectStore>, BadAddress> {
    let plain = options.get("azure_storage_endpoint").is_some_and(|end| end.starts_with("http://"));
    let http = http().with_allow_http(plain);
    let mut builder = MicrosoftAzureBuilder::new().with_url(url);
    for (key, value) in options {
        let known: AzureConfigKey = key.parse()?;
        builder = builder.with_config(known, value);
    }
    Ok(Arc::new(builder.with_client_options(http).with_retry(once()).build()?))
}

impl Object {
    /// The record `name` (letters, digits, dashes) at `s3://BUCKET/FOLDER` or
    /// `az://CONTAINER/FOLDER`. Options are those of the store's own programs in small letters:
    /// `aws_access_key_id`, `aws_secret_access_key`, `aws_region`, `aws_endpoint`,
    /// `azure_storage_account_name`, `azure_storage_account_key`, `azure_storage_endpoint`, ...
    /// An endpoint may be `http://`: then whoever is on the way can stop the cluster.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(
        url: &str,
        options: &BTreeMap<String, String>,
        name: &str,
    ) -> Result<Self, BadAddress> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| BadAddress(format!("`{url}` has no scheme")))?;
        let folder = rest.split_once('/').map_or("", |(_, folder)| folder);
        let folder = Path::parse(folder.trim_end_matches('/'))
            .map_err(|error| BadAddress(error.to_string()))?;
        let store = match scheme {
            "s3" => s3(url, options)?,
            "az" => azure(url, options)?,
            _ => return Err(BadAddress(format!("`{scheme}` is no kind of store"))),
        };
        Ok(Self { store, url: url.to_owned(), path: folder.clone().join(name), folder })
    }
}

/// What is known after a failed request. Only an answer of the store itself says that nothing was
/// done; the library does not tell a broken connection from a refusal.
fn failed(error: &Error) -> StoreError {
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotImplemented { .. }
        | Error::NotSupported { .. } => StoreError::Refused(error.to_string()),
        _ => StoreError::Unknown(error.to_string()),
    }
}

#[async_trait]
impl WitnessStore for Object {
    async fn read(&self) -> Result<Option<(Vec<u8>, Tag)>, StoreError> {
        let found = match self.store.get(&self.path).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        if found.meta.size > RECORD_BYTES_MAX as u64 {
            return Err(StoreError::Refused(format!("{} bytes are no record", found.meta.size)));
        }
        let Some(tag) = found.meta.e_tag.clone() else {
            return Err(StoreError::Refused("it gives no ETag".to_owned()));
        };
        let bytes = found.bytes().await.map_err(|error| failed(&error))?;
        Ok(Some((bytes.to_vec(), Tag(tag))))
    }

    async fn write_if(
        &self,
        expected: Option<&Tag>,
        bytes: Vec<u8>,
    ) -> Result<Written, StoreError> {
        let mode = match expected {
            None => PutMode::Create,
            Some(tag) => {
                PutMode::Update(UpdateVersion { e_tag: Some(tag.0.clone()), version: None })
            }
        };
        match self.store.put_opts(&self.path, PutPayload::from(bytes), mode.into()).await {
            Ok(put) => match put.e_tag {
                Some(tag) => Ok(Written::Yes(Tag(tag))),
                None => Err(StoreError::Unknown("it gives no ETag".to_owned())),
            },
            Err(
                Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. },
            ) => Ok(Written::No),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn remove(&self) -> Result<(), StoreError> {
        match self.store.delete(&self.path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    fn beside(&self, name: &str) -> Arc<dyn WitnessStore> {
        Arc::new(Self { path: self.folder.clone().join(name), ..self.clone() })
    }

    fn reads_are_fresh(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        format!("object store {}", self.url)
    }
}
