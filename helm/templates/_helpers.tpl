{{- define "sidecar-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: a pod's and a StatefulSet revision's name are longer, and end in a label of 63. */}}
{{- define "sidecar-gateway.fullname" -}}
{{- $name := include "sidecar-gateway.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sidecar-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sidecar-gateway.labels" -}}
{{ with .Values.commonLabels }}{{ toYaml . }}
{{ end }}{{ include "sidecar-gateway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "sidecar-gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sidecar-gateway.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-gateway.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-gateway.workloadKind" -}}
{{- ternary "StatefulSet" "Deployment" .Values.persistence.enabled -}}
{{- end -}}

{{- define "sidecar-gateway.secretName" -}}
{{- if .Values.existingSecret -}}{{ .Values.existingSecret }}
{{- else if .Values.secret -}}{{ include "sidecar-gateway.fullname" . }}
{{- end -}}
{{- end -}}

{{/* The host the gateway listens on. */}}
{{- define "sidecar-gateway.host" -}}
{{- default (ternary "127.0.0.1" "0.0.0.0" (eq .Values.mode "sidecar")) .Values.config.server.host -}}
{{- end -}}

{{- define "sidecar-gateway.isLoopback" -}}
{{- if regexMatch "^(localhost|127\\..*|\\[?::1\\]?)$" (include "sidecar-gateway.host" .) -}}yes{{- end -}}
{{- end -}}

{{/* sidecar.yaml: the values' `config`, checked. */}}
{{- define "sidecar-gateway.configYaml" -}}
{{- include "sidecar-gateway.check" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config.server "host" (include "sidecar-gateway.host" .) -}}
{{- $_ := set $config.server "drain_s" (include "sidecar-gateway.drainSeconds" . | float64) -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Pod annotations that change with configuration and Secret, so that a change rolls the pods. */}}
{{- define "sidecar-gateway.checksums" -}}
checksum/config: {{ include "sidecar-gateway.configYaml" . | sha256sum }}
{{- if .Values.secret }}
checksum/secret: {{ toJson .Values.secret | sha256sum }}
{{- end }}
{{- end -}}

{{/* A sidecar ends after its app, so nobody is left to send. */}}
{{- define "sidecar-gateway.drainSeconds" -}}
{{- $server := .Values.config.server -}}
{{- if hasKey $server "drain_s" -}}{{- $server.drain_s -}}{{- else -}}{{- ternary 0 5 (eq .Values.mode "sidecar") -}}{{- end -}}
{{- end -}}

{{- define "sidecar-gateway.leastSeconds" -}}
{{- addf (include "sidecar-gateway.drainSeconds" . | float64) .Values.config.server.grace_s | ceil | int -}}
{{- end -}}

{{- define "sidecar-gateway.terminationGracePeriodSeconds" -}}
{{- $least := include "sidecar-gateway.leastSeconds" . | int -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add $least 15 -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}
