//! Events: past ones as a list, new ones as a stream.

use std::convert::Infallible;

use api::ApiError;
use api::ErrorKind;
use api::endpoint as ep;
use api::types::EventView;
use axum::body::Body;
use axum::body::Bytes;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::response::Response;
use futures::StreamExt;
use futures::stream;
use std::time::Duration;

use crate::events::Subscription;
use crate::http::Call;
use crate::http::Mounts;
use crate::http::auth;
use crate::http::bad_request;
use crate::truth::EVENTS_AT_ONCE_MAX;
use crate::truth::StoreError;
use crate::truth::StoredEvent;

/// How many events a list has if nobody says.
const LIST_DEFAULT: u32 = 100;

/// How often a silent stream says that it lives, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) fn mount(mounts: &mut Mounts) {
    mounts.json::<ep::EventList, _, _>(list);
    mounts.raw::<ep::EventStream, _, _>(follow);
}

async fn list(call: Call<ep::EventList>) -> Result<Vec<EventView>, ApiError> {
    let limit = call.query.limit.unwrap_or(LIST_DEFAULT) as usize;
    if !(1..=EVENTS_AT_ONCE_MAX).contains(&limit) {
        return Err(bad_request("the limit is 1 to 1000"));
    }
    let events = match call.query.after {
        Some(after) => call.app.events.after(after, limit),
        None => call.app.events.last(limit),
    };
    Ok(events.map_err(|error| unreadable(&error))?.into_iter().map(view).collect())
}

async fn follow(call: Call<ep::EventStream>, _request: Request) -> Result<Response, ApiError> {
    let subscription =
        call.app.events.subscribe(call.query.after).map_err(|error| unreadable(&error))?;
    let Call { app, caller, .. } = call;
    let lines = stream::unfold(subscription, move |mut subscription| {
        let (app, caller) = (app.clone(), caller.clone());
        async move {
            let line = next_line(&mut subscription).await?;
            // The end of a session or token is an event itself: nothing goes out after it.
            auth::still(&app, &caller).then_some((Ok::<_, Infallible>(line), subscription))
        }
    });
    // The first line goes out at once, so that a client knows that it is connected.
    let hello = stream::once(async { Ok(Bytes::from_static(b": muster\n\n")) });
    let body = Body::from_stream(hello.chain(lines));
    let headers = [("content-type", "text/event-stream"), ("cache-control", "no-store")];
    Ok((headers, body).into_response())
}

async fn next_line(subscription: &mut Subscription) -> Option<Bytes> {
    let event = match tokio::time::timeout(KEEP_ALIVE, subscription.next()).await {
        Err(_) => return Some(Bytes::from_static(b": alive\n\n")),
        Ok(None | Some(Err(_))) => return None,
        Ok(Some(Ok(event))) => event,
    };
    let seq = event.seq;
    let json = serde_json::to_string(&view(event)).ok()?;
    let id = if seq == 0 { String::new() } else { format!("id: {seq}\n") };
    Some(Bytes::from(format!("{id}data: {json}\n\n")))
}

fn view(stored: StoredEvent) -> EventView {
    EventView { seq: stored.seq, event: stored.event }
}

fn unreadable(error: &StoreError) -> ApiError {
    let hint = "see the daemon's log: journalctl -u muster";
    ApiError::new(ErrorKind::Failed, "events", error.to_string(), hint)
}
