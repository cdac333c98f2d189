{{/* What a schema cannot say: values that must fit each other, and no secret in the ConfigMap. Prints nothing. */}}
{{- define "sidecar-gateway.check" -}}
{{- $v := .Values -}}
{{- $auth := get $v.config "auth" -}}
{{- $isMany := or (gt (int $v.replicaCount) 1) $v.autoscaling.enabled -}}
{{- if and $v.existingSecret $v.secret -}}
{{- fail "give existingSecret or secret, not both" -}}
{{- end -}}
{{- if and (eq (toString $auth) "none") (not (include "sidecar-gateway.isLoopback" .)) -}}
{{- fail "config.auth: none serves loopback only, so it fits mode sidecar; a proxy needs SIDECAR_MASTER_KEY in existingSecret or secret" -}}
{{- end -}}
{{- if eq $v.mode "proxy" -}}
{{- if include "sidecar-gateway.isLoopback" . -}}
{{- fail "config.server.host is loopback, which no Service reaches; remove it, or use mode sidecar" -}}
{{- end -}}
{{- if and $isMany (hasPrefix "sqlite" $v.config.store.database_url) -}}
{{- fail "several replicas need one database: set config.store.database_url to \"${DATABASE_URL}\" (PostgreSQL, from the Secret)" -}}
{{- end -}}
{{- if and $isMany (not (include "sidecar-gateway.hasMasterKey" .)) -}}
{{- fail "several replicas need one master key: put SIDECAR_MASTER_KEY into existingSecret or secret" -}}
{{- end -}}
{{- $least := include "sidecar-gateway.leastSeconds" . | int -}}
{{- if le (int (include "sidecar-gateway.terminationGracePeriodSeconds" .)) $least -}}
{{- fail (printf "terminationGracePeriodSeconds must be more than config.server.drain_s + config.server.grace_s (%d), else requests are cut" $least) -}}
{{- end -}}
{{- end -}}
{{- include "sidecar-gateway.refuseSecrets" (dict "at" "config" "key" "config" "value" $v.config) -}}
{{- include "sidecar-gateway.checkReferences" . -}}
{{- end -}}

{{/* "yes" if one is given as far as the chart can see; a Secret of the user's is trusted to hold it. */}}
{{- define "sidecar-gateway.hasMasterKey" -}}
{{- $auth := get .Values.config "auth" -}}
{{- $given := list -}}
{{- range .Values.extraEnv -}}{{- $given = append $given .name -}}{{- end -}}
{{- $isHere := or (hasKey .Values.secret "SIDECAR_MASTER_KEY") (has "SIDECAR_MASTER_KEY" $given) -}}
{{- $isInConfig := and (kindIs "map" $auth) (hasKey (default dict $auth) "master_key") -}}
{{- if or .Values.existingSecret .Values.extraEnvFrom $isHere $isInConfig -}}yes{{- end -}}
{{- end -}}

{{/*
Every credential stands as ${NAME} or ${file:/path}, without a default: by the names of keys (…_key, …_secret, …) and,
in URLs, by the part before the @. Recursive; arguments: at, key, value, isHeader.
*/}}
{{- define "sidecar-gateway.refuseSecrets" -}}
{{- $at := .at -}}
{{- $key := .key -}}
{{- $isHeader := .isHeader -}}
{{- $reference := "\\$\\{([A-Za-z_][A-Za-z0-9_]*|file:[^}]+)\\}" -}}
{{- if kindIs "map" .value -}}
{{- range $k, $value := .value -}}
{{- $next := dict "at" (printf "%s.%s" $at $k) "key" $k "value" $value "isHeader" (eq $key "headers") -}}
{{- include "sidecar-gateway.refuseSecrets" $next -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $i, $value := .value -}}
{{- include "sidecar-gateway.refuseSecrets" (dict "at" (printf "%s[%d]" $at $i) "key" $key "value" $value) -}}
{{- end -}}
{{- else if kindIs "string" .value -}}
{{- $name := $key | lower | replace "-" "_" -}}
{{- $isCredential := regexMatch "(_key|_key_id|_secret|_token|_password|_credentials|^password|^secret|^webhook)$" $name -}}
{{- if hasSuffix ".webhook.url" .at -}}
{{- $isCredential = true -}}
{{- end -}}
{{- if $isHeader -}}
{{- $isCredential = regexMatch "(key|secret|token|password|authorization|cookie)$" $name -}}
{{- else if eq $name "client_key" -}}
{{- $isCredential = false -}}
{{- end -}}
{{- if and $isCredential (not (regexMatch (printf "^((Bearer|Basic|Token) )?(%s)+$" $reference) .value)) -}}
{{- fail (printf "%s is a secret and would stand in a ConfigMap; write \"${NAME}\" there, and NAME into existingSecret or secret" $at) -}}
{{- end -}}
{{- $userinfo := regexFind "^[A-Za-z0-9+.-]+://.*@" .value -}}
{{- $isSafe := regexMatch (printf "^[A-Za-z0-9+.-]+://([^:]|%s)*(:(%s)*)?@$" $reference $reference) $userinfo -}}
{{- if or (and $userinfo (not $isSafe)) (regexMatch "[?&]password=[^$&]" .value) -}}
{{- fail (printf "%s holds a password and would stand in a ConfigMap; write \"${NAME}\" there, and NAME into existingSecret or secret" $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Each ${NAME} without a default is given, where the chart can see all that is given. */}}
{{- define "sidecar-gateway.checkReferences" -}}
{{- if not (or .Values.existingSecret .Values.extraEnvFrom) -}}
{{- $given := keys .Values.secret -}}
{{- range .Values.extraEnv -}}{{- $given = append $given .name -}}{{- end -}}
{{- $text := regexReplaceAll "\\$\\$\\{" (toYaml .Values.config) "" -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" $text -1 -}}
{{- $name := trimSuffix "}" (trimPrefix "${" .) -}}
{{- if not (has $name $given) -}}
{{- fail (printf "config names ${%s}, which nothing gives; put %s into existingSecret, secret or extraEnv" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
