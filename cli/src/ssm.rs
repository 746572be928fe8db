//! Parameters of SSM, with the credentials of the environment.
//!
//! A request is signed here (Signature Version 4), because the AWS SDK would double the time that
//! `cargo install` takes.
//!
//! **Invariant:** no value of a parameter is in an error.

use anyhow::{Context, anyhow, bail};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Request, Uri};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tallyhook_core::timestamp::Timestamp;

use crate::client::{Client, is_local};
use crate::output::text;
use crate::send::now;

const CREDENTIALS: &str = "set AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; \
                           `eval \"$(aws configure export-credentials --format env)\"` sets those of your profile";

/// The parameters of one AWS account and region.
pub struct ParameterStore {
    client: Client,
    endpoint: String,
    host: String,
    credentials: Credentials,
}

struct Credentials {
    region: String,
    access_key: String,
    secret_key: String,
    session_token: Option<String>,
}

impl ParameterStore {
    /// Reads region, credentials and endpoint from the environment.
    ///
    /// # Errors
    /// When a variable is missing.
    pub fn from_env() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let required =
            |name: &str| variable(name).with_context(|| format!("{name} is not set: {CREDENTIALS}"));
        let region = match variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
            Some(region) => region,
            None => required("AWS_REGION")?,
        };
        let endpoint = variable("AWS_ENDPOINT_URL_SSM")
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .unwrap_or_else(|| format!("https://ssm.{region}.amazonaws.com"));
        let uri: Uri = endpoint.parse().with_context(|| format!("{endpoint} is not a URL"))?;
        if uri.scheme_str() == Some("http") && !is_local(&uri) {
            bail!("{endpoint} would send secrets unencrypted: use https://");
        }
        let host = uri.authority().with_context(|| format!("{endpoint} is not a URL"))?.to_string();
        Ok(Self {
            client: Client::for_url(&endpoint)?,
            endpoint,
            host,
            credentials: Credentials {
                region,
                access_key: required("AWS_ACCESS_KEY_ID")?,
                secret_key: required("AWS_SECRET_ACCESS_KEY")?,
                session_token: variable("AWS_SESSION_TOKEN"),
            },
        })
    }

    /// The value of a parameter; `None` when there is no such parameter.
    ///
    /// # Errors
    /// When SSM does not answer or refuses.
    pub async fn get(&self, name: &str) -> anyhow::Result<Option<String>> {
        let answer = self.call("GetParameters", &json!({"Names": [name], "WithDecryption": true})).await?;
        Ok(answer["Parameters"][0]["Value"].as_str().map(str::to_owned))
    }

    /// Writes a parameter as a `SecureString` with the default key.
    ///
    /// # Errors
    /// When SSM does not answer or refuses.
    pub async fn put(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let body = json!({"Name": name, "Value": value, "Type": "SecureString", "Overwrite": true});
        self.call("PutParameter", &body).await.map(|_| ())
    }

    async fn call(&self, action: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let target = format!("AmazonSSM.{action}");
        let time = amz_date(now());
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", self.host.as_str()),
            ("x-amz-date", time.as_str()),
        ];
        headers
            .extend(self.credentials.session_token.as_deref().map(|token| ("x-amz-security-token", token)));
        headers.push(("x-amz-target", target.as_str()));
        let authorization = authorization(&self.credentials, "ssm", &headers, &body);
        let mut request = Request::post(&self.endpoint).header("authorization", authorization);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body.into_bytes()).context("cannot build the request to SSM")?;
        let answer = self.client.exchange(request).await?;
        let status = answer.status();
        let answer: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let kind = text(&answer["__type"]);
        let message = if answer["message"].is_string() { &answer["message"] } else { &answer["Message"] };
        Err(anyhow!(
            "SSM answered {status} to {action}: {} {}",
            kind.rsplit('#').next().unwrap_or_default(),
            text(message)
        ))
    }
}

/// `20261126T201500Z`.
fn amz_date(time: Timestamp) -> String {
    time.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// The header `Authorization` of a `POST` to the path `/`. The headers are sorted by name and contain
/// `x-amz-date`.
fn authorization(credentials: &Credentials, service: &str, headers: &[(&str, &str)], body: &str) -> String {
    let time = headers.iter().find(|(name, _)| *name == "x-amz-date").map_or("", |(_, time)| *time);
    let day = time.get(..8).unwrap_or_default();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hex(&Sha256::digest(body)));
    let scope = format!("{day}/{}/{service}/aws4_request", credentials.region);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("AWS4{}", credentials.secret_key).into_bytes();
    for part in [day, &credentials.region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &to_sign));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.access_key
    )
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(text).finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The case `post-vanilla` of AWS's test suite for Signature Version 4.
    #[test]
    fn a_request_is_signed_as_in_the_test_suite_of_aws() {
        let credentials = Credentials {
            region: "us-east-1".to_owned(),
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        assert_eq!(
            authorization(&credentials, "service", &headers, ""),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        assert_eq!(amz_date(Timestamp::from_unix(1_440_938_160)), "20150830T123600Z");
    }
}
