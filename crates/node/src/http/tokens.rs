//! API tokens. The secret is made here, shown once, and only its digest is kept.

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::endpoint::Nothing;
use api::types::TokenSecretView;
use api::types::TokenView;
use model::Command;
use model::Millis;
use model::TokenId;
use sha2::Digest;
use sha2::Sha256;

use crate::app::new_uuid;
use crate::app::now;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::certificate;
use crate::views::token_view;

/// Random bytes of a secret: far beyond guessing.
const SECRET_BYTES: usize = 32;

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::TokenList, _, _>(list);
    mounts.json::<ep::TokenCreate, _, _>(create);
    mounts.json::<ep::TokenRevoke, _, _>(revoke);
}

async fn list(call: Call<ep::TokenList>) -> Result<Vec<TokenView>, ApiError> {
    let state = call.app.truth.state();
    let mut list: Vec<_> = state.tokens.values().map(|token| token_view(token)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

async fn create(call: Call<ep::TokenCreate>) -> Result<TokenSecretView, ApiError> {
    let mut bytes = [0_u8; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        let message = format!("the host gives no random numbers: {error}");
        ApiError::new(ErrorKind::Failed, "random", message, "try again")
    })?;
    let secret = hex::encode(bytes);
    let token = TokenId::new(new_uuid());
    let mut expires = call.body.valid_s.map(|secs| now().plus(Millis::from_secs(secs)));
    let certificate = call.body.certificate.as_deref().map(certificate::read).transpose()?;
    if let Some(facts) = &certificate {
        // No right outlives the certificate that shows it.
        expires = Some(expires.map_or(facts.not_after, |end| end.min(facts.not_after)));
    }
    let command = Command::TokenCreate {
        token,
        name: call.body.name.clone(),
        role: call.body.role,
        digest: hex::encode(Sha256::digest(secret.as_bytes())),
        expires,
        certificate: certificate.as_ref().map(|facts| facts.key.to_string()),
    };
    call.app.propose(&call.caller.actor, command).await?;
    let state = call.app.truth.state();
    let record = state.find_token(&token.to_string())?;
    // The digest of a certificate's token is of random bytes that end here: nobody shows them.
    let secret = if certificate.is_some() { String::new() } else { secret };
    Ok(TokenSecretView { token: token_view(record), secret })
}

async fn revoke(call: Call<ep::TokenRevoke>) -> Result<Nothing, ApiError> {
    let token = call.app.truth.state().find_token(call.param(0))?.id;
    call.app.propose(&call.caller.actor, Command::TokenRevoke { token }).await?;
    Ok(Nothing {})
}
