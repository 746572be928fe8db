"""The smallest app that sells with tallyhook, in Django, in one file."""

import json
import os
import sys
from functools import wraps

from django.conf import settings
from django.core.cache import cache
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from model import summarize
from tallyhook import (
    AlreadySubscribedError,
    ConflictError,
    InsufficientCreditsError,
    Tallyhook,
    WebhookVerificationError,
    verify_webhook,
)

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for this example"),
)

tallyhook = Tallyhook()  # TALLYHOOK_URL, APP_API_TOKEN

# Your app has models instead.
projects = {}
accounts = {}
welcomed = []


@csrf_exempt
@require_POST
def webhook(request):
    try:
        id, message = verify_webhook(request.body, request.headers)  # PROVISION_SECRET
    except WebhookVerificationError as error:
        return JsonResponse({"error": error.code}, status=400)
    # Your app has a table with a unique key, written in one transaction with what the message does.
    if cache.add(f"webhook-{id}", True, timeout=None):
        handle(message)
    return HttpResponse(status=204)


def handle(message):
    data = message["data"]
    known = accounts.get(data["user_id"])
    if known is None or data["version"] >= known["version"]:
        accounts[data["user_id"]] = data
    if message["type"] == "payment.confirmed":
        welcomed.append(data["user_id"])  # set the user up, send an e-mail


def for_user(view):
    """Passes the user and the JSON body. Your app takes the user from its session."""

    @csrf_exempt
    @wraps(view)
    def with_user(request):
        user = request.headers.get("x-user")
        if not user:
            return HttpResponse(status=401)
        try:
            return view(user, json.loads(request.body or "{}"))
        except InsufficientCreditsError as error:
            return JsonResponse({"error": error.code, "upgrade": "/upgrade"}, status=402)

    return with_user


@require_POST
@for_user
def signup(user, body):
    account = tallyhook.create_user(user)
    return JsonResponse({"tier": account["tier"], "credits": account["credits"]})


@require_POST
@for_user
def add_project(user, body):
    mine = projects.setdefault(user, [])
    check = tallyhook.check(user, feature="projects", used=len(mine))
    if not check["allowed"]:
        refused = {"error": "limit_reached", "limit": check["limit"], "upgrade": "/upgrade"}
        return JsonResponse(refused, status=402)
    mine.append(body["name"])
    return JsonResponse({"projects": len(mine)}, status=201)


@require_POST
@for_user
def export(user, body):
    return JsonResponse({"credits": tallyhook.consume(user, 10, key=f"export-{body['id']}")["credits"]})


@require_POST
@for_user
def summary(user, body):
    def job(hold):
        summary, hold.used = summarize(body["text"])
        return summary

    return JsonResponse({"summary": tallyhook.with_hold(user, 200, job, key=f"summary-{body['id']}")})


def redirect_to(url):
    response = HttpResponseRedirect(url)
    response.status_code = 303
    return response


@require_GET
@for_user
def upgrade(user, body):
    try:
        return redirect_to(tallyhook.checkout(user, plan="pro")["url"])
    except AlreadySubscribedError as error:
        if not error.portal_url:
            raise
        return redirect_to(error.portal_url)


@require_GET
@for_user
def billing(user, body):
    try:
        return redirect_to(tallyhook.portal(user)["url"])
    except ConflictError as error:
        if error.code != "no_customer":
            raise
        return redirect_to("/upgrade")  # the user bought nothing yet


@require_GET
@for_user
def me(user, body):
    account = accounts.get(user, {})
    return JsonResponse(
        {"tier": account.get("tier"), "credits": account.get("credits"), "welcomes": welcomed.count(user)}
    )


urlpatterns = [
    path("webhooks/tallyhook", webhook),
    path("signup", signup),
    path("projects", add_project),
    path("exports", export),
    path("summaries", summary),
    path("upgrade", upgrade),
    path("billing", billing),
    path("me", me),
]

application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
